"""`completion`: the script completes in a real shell what the commands take."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hafm_lightning import cli
from hafm_lightning.cli.listen import SUBCOMMANDS

pytest.importorskip("shtab", reason="the package shtab is not installed: no completion")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from contextlib import redirect_stdout

    path = tmp_path_factory.mktemp("completion") / "hafm.bash"
    with path.open("w") as file, redirect_stdout(file):
        assert cli.main(["completion", "bash"]) == cli.DONE
    return path


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of ``words``."""
    listed = " ".join(f"'{word}'" for word in ("hafm", *words))
    code = f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words)}; _shtab_hafm; echo ${{COMPREPLY[@]}}"
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")
    return set(subprocess.run([bash, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_bash_completes_commands_options_and_choices(script: Path) -> None:
    assert completed(script, "") >= set(cli.COMMANDS)
    assert completed(script, "comp") == {"compare", "completion"}
    assert completed(script, "listen", "") >= set(SUBCOMMANDS)
    assert "--model.backbone.layers" in completed(script, "fit", "--model.b")
    assert "--trainer.max_steps" in completed(script, "fit", "--trainer.max_")
    assert completed(script, "generate", "--top") == {"--top-k", "--top-p"}
    assert "--clips.hop_s" in completed(script, "prepare", "--clips.")
    assert {"--tune-sampling", "--tuning.guidance"} <= completed(script, "evaluate", "--tun")
    assert completed(script, "generate", "--precision", "b") == {"bf16"}
