"""Lightning callbacks, loggers and the checkpoint writer: what surrounds a training run.

Named in YAML by ``class_path``; nothing in the core imports this package. One file each. Every run
has `exact_resume`, `guards`, `checkpoints`, `dashboard`, `step_progress` and the CSV log of `loggers`, and with
`max_time` a `session_timer`; a configuration may add `music_evaluation`, `ema` and the W&B logger. A new callback is
exported below.
"""

if __name__ != "hafm_lightning.callbacks":
    raise ImportError(
        f"imported as {__name__!r}: that would make a second, unequal copy of each class; "
        "import hafm_lightning.callbacks"
    )

from hafm_lightning.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from hafm_lightning.callbacks.dashboard import Dashboard
from hafm_lightning.callbacks.ema import EMA
from hafm_lightning.callbacks.exact_resume import ExactResume
from hafm_lightning.callbacks.guards import NonFiniteError, NonFiniteGuard
from hafm_lightning.callbacks.loggers import CsvLog, WandbDashboard
from hafm_lightning.callbacks.music_evaluation import MusicEvaluation
from hafm_lightning.callbacks.session_timer import SessionTimer
from hafm_lightning.callbacks.step_progress import StepProgress

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "Checkpoints",
    "CsvLog",
    "Dashboard",
    "ExactResume",
    "MusicEvaluation",
    "NonFiniteError",
    "NonFiniteGuard",
    "SessionTimer",
    "StepProgress",
    "WandbDashboard",
]
