"""``python -m hafm_lightning COMMAND ...``: see :mod:`hafm_lightning.cli`."""

from __future__ import annotations

import sys

from hafm_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
