"""A vocal goes in, an accompaniment comes out: three trained stages and two tokenizers as one object."""

from __future__ import annotations

from hafm_lightning.accompanist.band import Accompanist
from hafm_lightning.accompanist.live import LiveOptions, LiveSession
from hafm_lightning.accompanist.song import Vocal
from hafm_lightning.accompanist.take import MixOptions, Take

__all__ = ["Accompanist", "LiveOptions", "LiveSession", "MixOptions", "Take", "Vocal"]
