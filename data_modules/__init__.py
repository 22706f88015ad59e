"""LightningDataModules: what training, validation and test batches are made of.

Named in YAML by ``class_path``; nothing in the core imports this package. Start at `token_shards`; `sampling`
decides which clips make which batch, `clip_batches` reads them, `musdb18` prepares MUSDB18 at its first use.
"""

if __name__ != "hafm_lightning.data_modules":
    raise ImportError(
        f"imported as {__name__!r}: that would make a second, unequal copy of each class; "
        "import hafm_lightning.data_modules"
    )

from hafm_lightning.data_modules.musdb18 import Musdb18
from hafm_lightning.data_modules.token_shards import TokenShards

__all__ = ["Musdb18", "TokenShards"]
