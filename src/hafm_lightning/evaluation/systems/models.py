"""Where the models of a card lie: the one that is evaluated, and others that are compared with it."""

from __future__ import annotations

from pathlib import Path

from hafm_lightning.accompanist.model_folder import CONFIG_FILE
from hafm_lightning.checkpoint_format import best_in
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.settings import EvaluateSettings
from hafm_lightning.evaluation.systems.band import ModelSource

ROLES = ("semantic", "coarse", "fine")


def main_source(settings: EvaluateSettings) -> ModelSource:
    """The model that the settings evaluate; its paths are empty if they name none."""
    paths = (settings.model, settings.semantic, settings.coarse, settings.fine, settings.tokenizers)
    return ModelSource(*paths, settings.device, settings.precision)


def other_sources(settings: EvaluateSettings) -> dict[str, ModelSource]:
    """Name -> each of ``models``; RequestError for a folder that is neither a model nor holds runs of the stages."""
    how = (settings.tokenizers, settings.device, settings.precision)
    sources = {}
    for name, text in settings.models.items():
        folder = Path(text).expanduser()
        stages = ("", "", "")
        if folder.is_dir() and not (folder / CONFIG_FILE).is_file():
            semantic, coarse, fine = (best_in(folder / role) for role in ROLES)
            if not semantic or not coarse:
                raise RequestError(
                    f"models.{name}: {text} is no model folder, and holds no runs `semantic` and `coarse`\n"
                    "name a folder that `export` wrote, a Hub id, or the folder above the runs of the three stages"
                )
            stages, text = (semantic, coarse, fine), ""
        sources[name] = ModelSource(text, *stages, *how, stages=3 if text or stages[2] else 2)
    return sources
