"""How a command ends when its streams, its folder or a signal end it: exit code, what is said, what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hafm_lightning.cli import outcomes

SOURCES = Path(outcomes.__file__).resolve().parents[2]
COMMAND = f"{sys.executable} -m hafm_lightning"
POWER = "listen power --share 0.7"  # quick, prints some lines


def shell(line: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash that begins the command with ``$COMMAND``."""
    environment = {**os.environ, "COMMAND": COMMAND, "PYTHONPATH": str(SOURCES), **changes}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", [POWER, "--help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout_is_a_failure_that_is_told(command: str, unbuffered: str) -> None:
    done = shell(f"$COMMAND {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == outcomes.FAILED
    assert done.stderr.splitlines()[-1] == "failed: standard output: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [POWER, "--help"])
def test_a_reader_that_goes_away_ends_the_command_without_noise(command: str) -> None:
    done = shell(f"set -o pipefail; (sleep 0.2; $COMMAND {command}) | true")
    assert done.returncode == outcomes.BROKEN_PIPE
    assert done.stderr == ""


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code_and_take_no_file(closed: str, tmp_path: Path) -> None:
    for command, code in ((POWER, outcomes.DONE), ("generate --vocal x --out y --model z", outcomes.WRONG_REQUEST)):
        done = shell(f"cd {tmp_path}; $COMMAND {command} {closed}")
        assert done.returncode == code, (command, done.stderr)
    probe = (
        "import os, sys; from hafm_lightning.cli import main; main(['--version']); "
        "print(os.open('f', 65), file=sys.stderr)"
    )
    done = shell(f'cd {tmp_path}; {sys.executable} -c "{probe}" <&- >&-')
    assert int(done.stderr) > 2, "a file has taken the number of a standard stream"


@pytest.mark.parametrize("command", [POWER, "generate --vocal a.wav --out b"])
def test_a_working_directory_that_was_deleted_is_named(command: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    done = shell(f"mkdir {gone}; cd {gone}; rmdir {gone}; $COMMAND {command}")
    assert done.returncode == outcomes.WRONG_REQUEST
    assert "the working directory no longer exists" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_has_its_exit_code_and_leaves_no_half_written_file(name: str, code: int, tmp_path: Path) -> None:
    program = (
        "import sys, time, types, pathlib\n"
        "from hafm_lightning import cli\n"
        "from hafm_lightning.files import atomic_file\n"
        "def work(argv):\n"
        "    with atomic_file(pathlib.Path('result')) as draft:\n"
        "        draft.write_text('half')\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "cli.find = lambda name: work\n"
        "sys.exit(cli.main(['describe']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_hangup_stays_ignored() -> None:
    program = (
        "import os, signal, sys; from hafm_lightning import cli; "
        "cli.find = lambda name: lambda argv: os.kill(os.getpid(), signal.SIGHUP) or 0; "
        "sys.exit(cli.main(['describe']))"
    )
    done = shell(f'trap "" HUP; {sys.executable} -c "{program}"')  # as nohup starts a program
    assert done.returncode == outcomes.DONE
