"""Ways of damaging files."""

from pathlib import Path


def poison(path: Path, offset_from_end: int) -> None:
    content = bytearray(path.read_bytes())
    content[-offset_from_end : len(content) - offset_from_end + 2] = (5000).to_bytes(2, "little")
    path.write_bytes(bytes(content))
