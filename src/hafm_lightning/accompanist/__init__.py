"""From a vocal to its accompaniment: three trained stages and two tokenizers as one object.

Start at `band`. `stage_network` reads the stages, `windows` and `song` cover a long vocal, `rendering` makes sound of
tokens, `mixing` adds the vocal, `take` holds and writes the result; `model_folder` and `recommended` read and write a
model and its settings; `live` and `live_tracks` accompany during the performance.
"""

from __future__ import annotations

from hafm_lightning.accompanist.band import Accompanist
from hafm_lightning.accompanist.live import LiveSession
from hafm_lightning.accompanist.live_tracks import LiveOptions
from hafm_lightning.accompanist.mixing import MixOptions
from hafm_lightning.accompanist.recommended import Recommended
from hafm_lightning.accompanist.song import Vocal
from hafm_lightning.accompanist.take import Take

__all__ = ["Accompanist", "LiveOptions", "LiveSession", "MixOptions", "Recommended", "Take", "Vocal"]
