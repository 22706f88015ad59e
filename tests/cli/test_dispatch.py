"""The dispatcher: names, exit codes, and what is said where."""

import os
import subprocess
import sys
import types

import pytest
from shipped import EXPERIMENTS

from hafm_lightning import __version__, cli
from hafm_lightning.errors import RequestError
from hafm_lightning.processes.launchers import MEETING, RANKS, SLURM, SLURM_JOB, drop_left_over, left_over


@pytest.fixture
def command(monkeypatch):
    """Replace `describe` by a function, and run the dispatcher."""

    def install(function):
        module = types.ModuleType("hafm_lightning.cli.fit.describe")
        module.__spec__ = types.SimpleNamespace(name=module.__name__)
        module.main = function
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(cli, "available", lambda: cli.COMMANDS)

    return install


def test_a_command_gets_its_arguments_and_gives_its_exit_code(command):
    got = []
    command(lambda argv: got.extend(argv) or 7)
    assert cli.main(["describe", "--config", "x", "--debug"]) == 7
    assert got == ["--config", "x"]


def test_a_wrong_request_is_two_with_five_lines_at_most(command, capsys):
    def refuse(argv):
        raise RequestError("\n".join(f"line {i}" for i in range(9)))

    command(refuse)
    assert cli.main(["describe"]) == cli.WRONG_REQUEST
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: line 0", "line 1", "line 2", "line 3", "line 4"]
    assert cli.main(["describe", "--debug"]) == cli.WRONG_REQUEST
    assert "Traceback" in capsys.readouterr().err


def refuse(argv):
    raise RequestError("no\nwhere: here\nwhat to do")


def test_the_other_processes_of_a_launch_complain_in_one_line(command, capsys, monkeypatch):
    command(refuse)
    for name, value in {"LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["describe"]) == cli.WRONG_REQUEST
    assert capsys.readouterr().err == "error (process 1): no\n"


@pytest.mark.parametrize(
    "left",
    [
        {"LOCAL_RANK": "1"},
        {"RANK": "3", "WORLD_SIZE": "4"},
        {"LOCAL_RANK": "2", "MASTER_ADDR": "node0"},
        {"SLURM_PROCID": "2"},
        {"LOCAL_RANK": "", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
    ],
    ids=str,
)
def test_variables_that_no_launcher_has_set_hide_nothing(command, capsys, monkeypatch, left):
    """An error was hidden by a LOCAL_RANK that another program had left in the environment."""
    command(refuse)
    for name in (*RANKS, *MEETING, *SLURM, SLURM_JOB):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["describe"]) == cli.WRONG_REQUEST
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("ignoring ")
    assert lines[0].endswith("no launcher started this process")
    assert lines[1:] == ["error: no", "where: here", "what to do"]
    assert not set(RANKS) & set(os.environ)


@pytest.mark.parametrize(
    "launched",
    [
        {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"},
        {"SLURM_PROCID": "1", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "2"},
        {"LOCAL_RANK": "1", "SLURM_JOB_ID": "77"},
    ],
    ids=str,
)
def test_variables_of_a_launcher_stay(launched):
    assert left_over(launched) == []


def test_left_over_variables_that_mean_one_process_go_without_a_word(capsys):
    environment = {"RANK": "0", "WORLD_SIZE": "1"}
    drop_left_over(environment)
    assert environment == {}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), 130), (SystemExit(3), 3), (SystemExit(None), 0), (SystemExit("words"), 1)],
)
def test_ways_to_leave(command, raised, code):
    def leave(argv):
        raise raised

    command(leave)
    assert cli.main(["describe"]) == code


def test_sigterm_in_lightnings_loop_is_143(command):
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    def leave(argv):
        raise SIGTERMException

    command(leave)
    assert cli.main(["describe"]) == 143


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (ZeroDivisionError("a bug"), "failed: ZeroDivisionError: a bug (--debug shows where)"),
        (ValueError("first\n\nsecond"), "failed: ValueError: first second (--debug shows where)"),
        (KeyError(), "failed: KeyError (--debug shows where)"),
        (PermissionError(13, "Permission denied", "/data/x"), "failed: /data/x: Permission denied"),
        (OSError(18, "Invalid cross-device link", "a", None, "b"), "failed: a -> b: Invalid cross-device link"),
        (OSError(28, "No space left on device"), "failed: the operating system: No space left on device"),
        (MemoryError(), "failed: not enough memory (MemoryError); close other programs, or ask for less at a time"),
        (RecursionError("too deep"), "failed: RecursionError: too deep (--debug shows where)"),
        (OSError("no number"), "failed: OSError: no number (--debug shows where)"),
    ],
)
def test_a_failure_of_the_work_is_one_line_and_its_traceback_comes_with_debug(
    command, capsys, monkeypatch, raised, line
):
    def fail(argv):
        raise raised

    command(fail)
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
    assert cli.main(["describe"]) == cli.FAILED
    assert capsys.readouterr().err == f"{line}\n"
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "0")
    assert cli.main(["describe", "--debug"]) == cli.FAILED
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith(f"{line}\n")


def test_lines_of_any_length_and_of_any_bytes_can_be_shown(command, capsys):
    def refuse(argv):
        raise RequestError(f"{'x' * 10_000}\n\udce6\x1b[31m\nsmall")

    command(refuse)
    assert cli.main(["describe"]) == cli.WRONG_REQUEST
    lines = capsys.readouterr().err.splitlines()
    assert [len(line) <= 400 for line in lines] == [True] * 3
    assert lines[1].isprintable()


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["fitt"]) == cli.WRONG_REQUEST
    assert "did you mean 'fit'" in capsys.readouterr().err
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert cli.main([]) == cli.WRONG_REQUEST
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in cli.available())


def test_every_offered_command_exists_and_is_a_function():
    for name in cli.available():
        assert callable(cli.find(name)), name


def test_the_module_runs_and_tells_its_exit_code():
    done = subprocess.run([sys.executable, "-m", "hafm_lightning", "nope"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown command 'nope'" in done.stderr
    assert "Traceback" not in done.stderr


def answer(capsys, *arguments: str) -> str:
    """What a wrong request prints: exit code 2, at most five lines, no usage, no traceback."""
    assert cli.main(list(arguments)) == cli.WRONG_REQUEST
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "usage:" not in printed.err
    assert "Traceback" not in printed.err
    assert 1 <= len(printed.err.splitlines()) <= cli.ERROR_LINES
    return printed.err


@pytest.mark.parametrize("name", cli.available())
def test_an_option_that_there_is_not_is_told_in_a_few_lines(name, capsys):
    assert "--no-such-thing" in answer(capsys, name, "--no-such-thing", "3")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--minuts", "3"], "did you mean '--minutes'?"),
        (["demo", "--minutes", "many"], "--minutes"),
        (["doctor", "--jason"], "did you mean '--json'?"),
        (["curves", "run", "--uot", "x"], "did you mean '--out'?"),
        (["describe", "--clip_s", "long"], "--clip_s"),
        (
            ["evaluate", "--config", str(EXPERIMENTS / "quickstart" / "evaluate.yaml"), "--sytems", "model"],
            "did you mean 'systems'?",
        ),
        (["generate", "--vocl", "a.wav"], "did you mean '--vocal'?"),  # before --out, which is missing too
        (["generate", "--vocal", "a.wav"], "--out"),
        (["export", "--out"], "--out"),
        (["prepare", "--confg", "c.yaml"], "did you mean 'config'?"),
        (["prepare", "--verify", "x", "--root", "x"], "--verify ROOT takes no other option"),
        (["fti"], "did you mean 'fit'?"),
    ],
)
def test_a_misspelt_option_is_answered_with_the_nearest(arguments, words, capsys):
    assert words in answer(capsys, *arguments)


@pytest.mark.parametrize("name", cli.available())
def test_every_command_explains_itself(name, capsys):
    assert cli.main([name, "--help"]) == cli.DONE
    assert name in capsys.readouterr().out


ALL_COMMANDS = sorted(cli.COMMANDS)


def slips(word):
    """A letter left out, doubled, or exchanged with the next one."""
    yield from (word[:i] + word[i + 1 :] for i in range(1, len(word)))
    yield from (word[:i] + word[i] + word[i:] for i in range(len(word)))
    yield from (word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1))


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_a_slip_of_the_hand_in_any_command_is_recognised(name):
    for word in set(slips(name)) - {name}:
        with pytest.raises(RequestError, match=rf"did you mean .*'{name}'"):
            cli.find(word)


def test_words_of_other_programs_lead_to_the_command(capsys):
    """`train` was answered by the list of all commands alone."""
    assert cli.main(["train", "--config", "x"]) == cli.WRONG_REQUEST
    assert capsys.readouterr().err.startswith("error: unknown command 'train'; did you mean 'fit'?\n")
    for name, words in cli.OTHER_WORDS.items():
        assert name in cli.COMMANDS
        for word in words:
            assert word not in cli.COMMANDS
            assert cli.meant(word, ALL_COMMANDS) == [name]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"], ["fitt"]])
def test_help_answers_at_once(arguments):
    """`fit --help` imported PyTorch and took half a minute."""
    code = (
        "import sys, resource; from hafm_lightning import cli; "
        f"cli.main({arguments!r}); used = resource.getrusage(resource.RUSAGE_SELF); "
        "print(used.ru_utime + used.ru_stime, 'torch' in sys.modules, 'lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.splitlines()[-1].split()
    assert loaded == ["False", "False"]
    assert float(seconds) < 2


def test_the_console_script_is_the_module(monkeypatch, capsys):
    import configparser
    from pathlib import Path

    from hafm_lightning import __main__

    parser = configparser.ConfigParser()
    parser.read(Path(__file__).resolve().parents[2] / "setup.cfg", encoding="utf-8")
    assert parser["options.entry_points"]["console_scripts"].split() == ["hafm", "=", "hafm_lightning.__main__:hafm"]
    monkeypatch.setattr(sys, "argv", ["hafm", "--version"])
    with pytest.raises(SystemExit) as stop:
        __main__.hafm()
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("program", "shown"), [("/usr/bin/hafm", "hafm"), ("/x/__main__.py", "python -m hafm_lightning")]
)
def test_help_names_the_program_as_it_was_typed(program, shown):
    code = f"import sys; sys.argv = [{program!r}]; from hafm_lightning.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"usage: {shown} COMMAND" in done.stdout
