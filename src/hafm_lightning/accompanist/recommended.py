"""The settings with which a model sounds best, as its maker found them: `generation_config.json` in a model folder.

`export` writes it, and `generate`, `app` and :class:`Accompanist` begin from it. A folder without the file has the
paper's sampling.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from hafm_lightning.accompanist.stage_network import StageNetwork
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.untrusted import checked, read_json

GENERATION_FILE = "generation_config.json"
NOISE_KEY = "vocal_noise_sigma"
"""Key of the noise in this file and in the description of a stage."""
_ADVICE = "repair or remove the file; without it the defaults are used"


@dataclass(frozen=True)
class Recommended:
    """Sampling, and the noise on vocals in training (0 if it is not known; full scale is 1)."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    vocal_noise_sigma: float = 0.0


@dataclass(frozen=True)
class _File:
    """Content of the file; what is absent has the default."""

    guidance: float = SamplingOptions.guidance
    temperature: float = SamplingOptions.temperature
    top_k: int | None = SamplingOptions.top_k
    top_p: float | None = SamplingOptions.top_p
    vocal_noise_sigma: float | None = None


def write_recommended(folder: Path, recommended: Recommended) -> None:
    """Write the file into a model folder that is being made."""
    content = {**asdict(recommended.sampling), NOISE_KEY: recommended.vocal_noise_sigma}
    (folder / GENERATION_FILE).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_recommended(folder: str | Path, networks: Sequence[StageNetwork] = ()) -> Recommended:
    """The file of a model folder, completed by defaults and by what training wrote; RequestError if it is damaged."""
    path = Path(folder) / GENERATION_FILE
    given = _File()
    if path.exists():
        given = checked(read_json(path, what="settings of a model", advice=_ADVICE), _File, path, _ADVICE)
    noise = trained_noise(networks) if given.vocal_noise_sigma is None else given.vocal_noise_sigma
    if not 0 <= noise <= 1:
        raise RequestError(f"{path}: {NOISE_KEY} must be from 0 to 1, got {noise:g}; {_ADVICE}")
    try:
        sampling = SamplingOptions(given.guidance, given.temperature, given.top_k, given.top_p)
    except ValueError as error:
        raise RequestError(f"{path}: {error}; {_ADVICE}") from error
    return Recommended(sampling, noise)


def trained_noise(networks: Sequence[StageNetwork]) -> float:
    """Noise on the vocals of the stages' training: from their descriptions, or the shards beside their tokenizers.

    0 if neither names it: stages of earlier versions whose shards have moved.
    """
    for network in networks:
        sigma = network.metadata.get(NOISE_KEY)
        if isinstance(sigma, int | float) and 0 <= sigma <= 1:
            return float(sigma)
    for network in networks:
        folder = network.metadata.get("tokenizers_folder")
        manifest = Path(str(folder)).parent / "train" / "manifest.json" if folder else None
        if manifest is not None and manifest.is_file():
            content = read_json(manifest, what="manifest", advice="prepare the shards again")
            preparation = content.get("preparation") if isinstance(content, dict) else None
            sigma = preparation.get("noise_sigma") if isinstance(preparation, dict) else None
            if isinstance(sigma, int | float) and not isinstance(sigma, bool) and 0 <= sigma <= 1:
                return float(sigma)
    return 0.0


FROM_MODEL: Final = "model"
FromModel = Literal["model"]
"""In place of a number: the recommended one. (None already means "no limit".)"""


def changed_sampling(
    recommended: SamplingOptions,
    guidance: float | FromModel = FROM_MODEL,
    temperature: float | FromModel = FROM_MODEL,
    top_k: int | FromModel | None = FROM_MODEL,
    top_p: float | FromModel | None = FROM_MODEL,
) -> SamplingOptions:
    """The recommended sampling with the given changes; RequestError for a value out of range."""
    given = {"guidance": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value != FROM_MODEL}
    try:
        return replace(recommended, **changes)
    except (ValueError, TypeError) as error:
        raise RequestError(str(error)) from error
