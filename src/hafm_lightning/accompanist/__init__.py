"""From a vocal to its accompaniment: three trained stages and two tokenizers as one object.

Start at `band`. `stage_network` reads the stages, `windows` and `song` cover a long vocal, `rendering` makes sound of
tokens, `take` holds and writes the result, `model_folder` reads and writes a whole model; `live` and `live_tracks`
accompany during the performance.
"""

from __future__ import annotations

from hafm_lightning.accompanist.band import Accompanist
from hafm_lightning.accompanist.live import LiveSession
from hafm_lightning.accompanist.live_tracks import LiveOptions
from hafm_lightning.accompanist.song import Vocal
from hafm_lightning.accompanist.take import MixOptions, Take

__all__ = ["Accompanist", "LiveOptions", "LiveSession", "MixOptions", "Take", "Vocal"]
