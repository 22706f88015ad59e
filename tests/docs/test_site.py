"""The documentation builds without a warning, and the pages that the program writes are complete."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shown import DOCS, ROOT

from hafm_lightning import cli


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "--builder", "html", str(DOCS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    commands = (tmp_path / "reference" / "cli.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in commands for name in cli.available())
    keys = (tmp_path / "reference" / "configuration.html").read_text(encoding="utf-8")
    assert all(f">{key}<" in keys for key in ("model.backbone.layers", "data.batch_size", "checkpoints.every_steps"))
    assert "--corpora" in keys
    classes = (tmp_path / "reference" / "api_generation.html").read_text(encoding="utf-8")
    assert "hafm_lightning.accompanist.band.Accompanist.accompany" in classes
    first = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert first.count("<audio") == 9
    assert (tmp_path / "_static" / "song_1_vocal.ogg").is_file()


def test_an_own_link_leads_to_the_repository_on_the_web() -> None:
    pytest.importorskip("sphinx", reason="needs the extra docs")
    code = (
        "import sys; sys.path.insert(0, 'docs/extensions')\n"
        "from types import SimpleNamespace as Space\n"
        "from repository_links import to_repository\n"
        "app = Space(srcdir='docs', config=Space(repository_url='https://x.org/r'))\n"
        "text = ['[a](../../README.md#results) [b](../generation.md) [c](../../experiments/) [d](https://y.org/../z)']\n"
        "to_repository(app, 'tutorials/hear_it', text)\n"
        "print(text[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "[a](https://x.org/r/blob/main/README.md#results) [b](../generation.md) "
        "[c](https://x.org/r/tree/main/experiments) [d](https://y.org/../z)"
    )
