"""``trainer.max_time`` for the present session of a run: a run that continues has the whole time again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer

from hafm_lightning.errors import RequestError


class SessionTimer(Timer):
    """Stops a fit after a time, as for a job of limited length; the run is saved and can be continued.

    Lightning's timer adds the time of earlier sessions, so that a continued run would stop before its first step.
    """

    def __init__(self, duration: str | timedelta | dict[str, int]) -> None:
        """Set the time.

        Args:
            duration: ``DD:HH:MM:SS``, or a mapping such as ``{hours: 3}``.
        """
        try:
            super().__init__(duration)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise RequestError(
                f"trainer.max_time is {duration!r}: expected DD:HH:MM:SS, for example 00:03:00:00 for three hours"
            ) from error
        remaining = self.time_remaining()
        if remaining is not None and remaining <= 0:
            raise RequestError("trainer.max_time is 0: nothing would be trained\nset it, or leave it out")

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the time counts from the start of each session."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""
