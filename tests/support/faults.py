"""Ways of damaging files."""

import hashlib
from pathlib import Path


def poison(path: Path, offset_from_end: int) -> None:
    """Write an id that is out of range into a shard, and list the shard's new sha256, as a faulty writer would."""
    content = path.read_bytes()
    poisoned = content[:-offset_from_end] + (5000).to_bytes(2, "little") + content[len(content) - offset_from_end + 2 :]
    path.write_bytes(poisoned)
    manifest = path.with_name("manifest.json")
    before, after = (hashlib.sha256(data).hexdigest() for data in (content, poisoned))
    manifest.write_text(manifest.read_text().replace(before, after))
