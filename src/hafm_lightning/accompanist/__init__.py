"""A vocal goes in, an accompaniment comes out: three trained stages and two tokenizers as one object.

Start at :mod:`~hafm_lightning.accompanist.band`. `networks` says which stages and tokenizers belong together, `windows`
and `song` how a long vocal is covered, `rendering` how tokens become sound, `take` what is returned and written,
`model_folder` how a whole model is kept; `live` accompanies while the vocal comes in.
"""

from __future__ import annotations

from hafm_lightning.accompanist.band import Accompanist
from hafm_lightning.accompanist.live import LiveSession
from hafm_lightning.accompanist.live_tracks import LiveOptions
from hafm_lightning.accompanist.song import Vocal
from hafm_lightning.accompanist.take import MixOptions, Take

__all__ = ["Accompanist", "LiveOptions", "LiveSession", "MixOptions", "Take", "Vocal"]
