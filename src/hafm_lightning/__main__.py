"""``python -m hafm_lightning COMMAND ...``, and the console script ``hafm``: see :mod:`hafm_lightning.cli`."""

from __future__ import annotations

import sys

from hafm_lightning.cli import main


def hafm() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    hafm()
