"""Every number option of every command with every hostile value: refused in at most five lines, or it works."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_band import TinyBand, sing

from hafm_lightning import Accompanist, cli
from hafm_lightning.audio import write_audio
from hafm_lightning.cli import generate
from hafm_lightning.cli.app import command as app
from hafm_lightning.cli.parser import Parser

VALUES = ("nan", "inf", "-inf", "-1", "0", "1e308", "1e-300", "", "many", str(10**40), "0x10", "١", "1_0", " 2", "-0.0")
COMMANDS = (
    ["generate"],
    ["app"],
    ["export"],
    ["push"],
    ["doctor"],
    ["judge"],
    ["curves"],
    ["describe"],
    ["demo"],
    ["listen", "serve"],
    ["listen", "report"],
    ["listen", "import"],
    ["listen", "power"],
)


class Captured(Exception):
    """Carries a parser out of its command."""


def parser_of(command: Sequence[str]) -> Parser:
    """The parser that a command makes."""
    with pytest.MonkeyPatch.context() as patch:

        def capture(parser: Parser, *arguments: object) -> Any:
            raise Captured(parser)

        for name in ("parse_args", "parse_known_args"):
            patch.setattr(Parser, name, capture)
        try:
            cli.find(command[0])(list(command[1:]))
        except Captured as captured:
            parser: Parser = captured.args[0]
            return parser
    raise AssertionError(f"{command} made no parser")


def number_options(command: Sequence[str]) -> list[str]:
    """The options of a command that take a value which is no path or name: those with a type or with choices."""
    actions = parser_of(command)._actions
    numbers = [a for a in actions if a.option_strings and (a.choices or a.type not in (None, str, Path))]
    return [action.option_strings[0] for action in numbers]


@pytest.fixture
def request_of(
    live_band: TinyBand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> Callable[[Sequence[str]], list[str]]:
    """The shortest request of a command that would do something; those that would never end are cut short."""
    write_audio(tmp_path / "vocal.wav", sing(0.05, 8000))
    files = {"semantic": live_band.semantic, "coarse": live_band.coarse, "fine": live_band.fine}
    model = [word for role, path in files.items() for word in (f"--{role}", str(path))]
    monkeypatch.setattr(app, "import_gradio", lambda: None)
    monkeypatch.setattr(app, "load_band", lambda arguments: (_ for _ in ()).throw(SystemExit(0)))
    requests = {
        "generate": ["--vocal", str(tmp_path / "vocal.wav"), "--out", str(tmp_path / "out"), *model],
        "export": ["--out", str(tmp_path / "model"), "--overwrite", *model],
        "push": ["--model", str(tmp_path), "--to", "a/b"],
        "judge": [str(tmp_path), "--judge", "coherence"],
        "curves": [str(tmp_path)],
        "describe": ["--config", str(repository / "experiments" / "quickstart" / "semantic.yaml")],
        "demo": ["--out", str(tmp_path / "vocal.wav" / "demo")],
        "listen serve": [str(tmp_path)],
        "listen report": [str(tmp_path)],
        "listen import": [str(tmp_path), str(tmp_path / "votes")],
    }
    return lambda command: [*command, *requests.get(" ".join(command), [])]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_hostile_values_are_refused_in_a_few_lines_or_work(
    command: list[str],
    request_of: Callable[[Sequence[str]], list[str]],
    live_band: TinyBand,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = request_of(command)
    if command == ["generate"]:  # no option of the table decides which model is loaded
        band = Accompanist.from_checkpoints(**live_band.files(), device="cpu", precision="fp32")
        monkeypatch.setattr(generate, "load_band", lambda arguments: band)
    for option in number_options(command):
        for value in VALUES:
            capsys.readouterr()
            code = cli.main([*request, f"{option}={value}"])
            lines = [line for line in capsys.readouterr().err.splitlines() if "elapsed" not in line]
            assert code in (cli.DONE, cli.WRONG_REQUEST), (option, value, lines)
            if code == cli.WRONG_REQUEST:
                assert 1 <= len(lines) <= cli.ERROR_LINES, (option, value, lines)
                assert lines[0].startswith("error: "), (option, value, lines)


def test_the_table_sees_the_options() -> None:
    assert {"--seed", "--guidance", "--temperature", "--top-k", "--gain-db", "--vocal-noise"} <= set(
        number_options(["generate"])
    )
    assert "--port" in number_options(["app"])
    assert "--port" in number_options(["listen", "serve"])
    assert "--share" in number_options(["listen", "power"])
    assert isinstance(parser_of(["describe"]), argparse.ArgumentParser)


@pytest.mark.parametrize(
    "device", ["meta", "cuda:99", "xla", "cpu:7x", "", "cuda:-1", "privateuseone", "\x00", "vulkan"]
)
def test_a_device_that_cannot_compute_is_refused(
    device: str, request_of: Callable[[Sequence[str]], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*request_of(["generate"]), f"--device={device}"]) == cli.WRONG_REQUEST
    said = [line for line in capsys.readouterr().err.splitlines() if "elapsed" not in line]
    assert len(said) == 1
    assert "cannot be used" in said[0]
