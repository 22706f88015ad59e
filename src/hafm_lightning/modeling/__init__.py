"""Plain torch: sequence layouts, attention with a learned relative bias, the Transformer, sampling and decoding.

No Lightning and no audio here. Read in this order: ``layout`` (tokens -> steps), ``relative_position``,
``attention`` (how queries meet keys), ``transformer`` (the backbone), ``cache``, ``conditioning``, ``token_model`` (one
stage's network), ``sampling``, ``filling``, ``decoding``. Nothing here depends on the device; the package
``kernels`` exchanges modules for faster ones.
"""

from __future__ import annotations

__all__ = [
    "attention",
    "cache",
    "conditioning",
    "decoding",
    "filling",
    "layout",
    "relative_position",
    "sampling",
    "token_model",
    "token_scores",
    "transformer",
]
