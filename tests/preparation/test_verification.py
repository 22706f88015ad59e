"""Problems that ``prepare --verify`` finds."""

import json
import subprocess

import pytest

from hafm_lightning.preparation.verification import verify_root


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")


def test_verify_finds_splits_that_share_songs_and_foreign_tokenizers(prepared, tmp_path):
    root = tmp_path / "root"
    subprocess.run(["cp", "-r", prepared, root], check=True)
    subprocess.run(["cp", "-r", root / "test", root / "spare"], check=True)
    for path in (root / "validation").iterdir():
        path.unlink()
    for path in (root / "spare").iterdir():
        path.rename(root / "validation" / path.name)
    description = json.loads((root / "tokenizers" / "semantic" / "tokenizer.json").read_text())
    description["identity"]["sha256"] = "0" * 64
    (root / "tokenizers" / "semantic" / "tokenizer.json").write_text(json.dumps(description))
    text = "\n".join(verify_root(root).problems)
    assert "its manifest belongs to the split 'test'" in text
    assert "1 songs are in validation and in test" in text
    assert "different semantic tokenizer" in text
