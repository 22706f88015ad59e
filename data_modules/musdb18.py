"""MUSDB18 as a data module: tokens of its songs, prepared at their first use.

Its songs have true stems, those of FMA do not: stages are tested on its test songs (``python -m hafm_lightning test``),
and small ones can be trained on its training songs. The tokenizers must be those of the stage.
"""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from hafm_lightning.data_modules.token_shards import TokenShards
from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.configuration import PreparationConfig
from hafm_lightning.preparation.engine import EngineSettings
from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.preparation.tokenizer_training import TokenizerSettings
from hafm_lightning.shards import MANIFEST_NAME, SPLITS
from hafm_lightning.songs import MusdbHQ
from hafm_lightning.songs.clips import ClipSettings
from hafm_lightning.tokens import CLIP_DURATION_S
from hafm_lightning.training.batch_division import divide


class Musdb18(TokenShards):
    """:class:`TokenShards` of MUSDB18-HQ (or of a folder in its layout, such as the toy band's)."""

    def __init__(
        self,
        path: str,
        root: str,
        tokenizers_from: str,
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
        clip_s: float = CLIP_DURATION_S,
        hop_s: float | None = None,
        allow_partial: bool = False,
        crop_s: float | None = None,
        seed: int = 0,
        workers: int = 0,
        preparation_workers: int = 0,
        global_batch_size: int | None = None,
    ) -> None:
        """Store the request; songs are read by :meth:`prepare_data`.

        Args:
            path: The folder that holds ``train/`` and ``test/``, with a folder of stems for each song.
            root: Where the shards go; a finished one is used as it is, also when ``path`` is not there.
            tokenizers_from: The ``tokenizers`` folder beside the shards that the stage was trained on.
            batch_size: Training clips of a batch on one process. Either this or ``global_batch_size`` is given.
            eval_batch_size: Clips of a validation or test batch; by default those of a training batch.
            clip_s: Length of a clip in seconds: 10 as in training, 3 as in the paper's evaluation.
            hop_s: From one clip's start to the next; by default ``clip_s``.
            allow_partial: Accept a copy with fewer than 100 + 50 songs.
            crop_s: Length of random crops in seconds; by default whole clips.
            seed: Of the order of clips and the places of crops.
            workers: Loader processes.
            preparation_workers: Processes that tokenize; 0 is one for each core.
            global_batch_size: Training clips of a step, over all processes and accumulated batches.
        """
        super().__init__(
            root,
            batch_size,
            eval_batch_size=eval_batch_size,
            crop_s=crop_s,
            seed=seed,
            workers=workers,
            global_batch_size=global_batch_size,
        )
        self.prepare_data_per_node = False
        self.path = Path(path).expanduser()
        self.request = PreparationConfig(
            root=root,
            corpora=(MusdbHQ(str(self.path), allow_partial),),
            clips=ClipSettings(clip_s, clip_s if hop_s is None else hop_s),
            tokenizers=TokenizerSettings(folder=tokenizers_from),
            engine=EngineSettings(workers=preparation_workers),
        )

    def prepare_data(self) -> None:
        """Make the shards on one process, or continue; RequestError if ``root`` holds shards of other settings."""
        if self._has_songs():
            prepare(self.request)

    def check_request(self, command: str, trainer: Trainer, module: LightningModule) -> None:
        """Refuse a request that cannot be prepared; check finished shards."""
        if command == "fit":
            divide(self.batch_size, self.global_batch_size, trainer)
        if not self._has_songs():
            super().check_request(command, trainer, module)

    def _has_songs(self) -> bool:
        """Whether there are songs to prepare; without them the shards must be finished, else RequestError."""
        root = Path(self.root).expanduser()
        if self.path.is_dir():
            return True
        if not all((root / split / MANIFEST_NAME).is_file() for split in SPLITS):
            raise RequestError(
                f"data.path {self.path} does not exist\n"
                "give the folder of MUSDB18-HQ that holds train/ and test/ (https://zenodo.org/records/3338373)"
            )
        return False
