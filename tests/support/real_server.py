"""A real server process of a study, to be killed and started again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from browser import free_port


class RealServer:
    """``listen serve`` on a port of its own.

    Args:
        study: Folder of the study.
        options: More options.
    """

    def __init__(self, study: Path, *options: str) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        command = ["listen", "serve", str(study), "--port", str(self.port), *options]
        self._command = [sys.executable, "-m", "hafm_lightning", *command]
        self.process: subprocess.Popen[str] | None = None

    def start(self, limit_s: float = 120) -> None:
        # A shell starts background jobs with Ctrl-C ignored, which children inherit.
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        until = time.monotonic() + limit_s
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/api/study", timeout=30):
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    self.process.kill()
                    raise AssertionError("\n".join(self.process.communicate())) from None
                time.sleep(0.05)

    def end(self, kind: signal.Signals) -> tuple[int, str, str]:
        """Send a signal; exit code, output and errors."""
        assert self.process is not None
        self.process.send_signal(kind)
        output, errors = self.process.communicate(timeout=60)
        return self.process.returncode, output, errors
