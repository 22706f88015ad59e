"""VGGish: the network whose embedding most published FADs use, with its own front end and safe weights.

The network is the one of the published weights: four blocks of 3 x 3 convolutions (64, 128, 256 x 2, 512 x 2 channels),
each halved by max pooling, then three linear layers (4096, 4096, 128). FAD is computed on the plain embedding, without
PCA and quantisation. Published tools differ in the framing (see :mod:`hafm_lightning.evaluation.embeddings.log_mel`)
and in whether a ReLU follows the last layer (by default not, as in the FAD paper's program).

The published torch weights come as a pickle. They are read as plain data, checked against a pinned sha256, and kept as
safetensors in the cache.

Sources: Hershey et al. (arXiv 1609.09430); Kilgour et al. (arXiv 1812.08466).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.embeddings import log_mel
from hafm_lightning.evaluation.embeddings.base import Embedding
from hafm_lightning.evaluation.embeddings.weights import cache_folder, check_file, download, read_weights
from hafm_lightning.files import sha256_of, write_atomic
from hafm_lightning.tokenizers.base import content_sha256
from hafm_lightning.tokenizers.hub import HUB_SCHEME, fetch_file

WEIGHTS_URL = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"
WEIGHTS_SHA256 = "10086976245803799d9194e9a73d9b6c1549c71d1b80106f5cade5608a561f4b"
"""sha256 of the published torch port of the AudioSet weights (288,567,937 bytes)."""
CONVERTED_NAME = "vggish-10086976.safetensors"

BLOCKS = (1, 1, 2, 2)
"""Convolutions before each of the four poolings."""
BATCH_PATCHES = 64


class VGGish(nn.Module):
    """Log-mel patches ``[n, 96, 64]`` -> embedding ``[n, dimensions]``. Parameter names are the published ones.

    The four blocks have ``channels``, the two hidden linear layers the width ``hidden``.
    """

    def __init__(
        self, channels: Sequence[int] = (64, 128, 256, 512), hidden: int = 4096, dimensions: int = 128
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 1
        for width, convolutions in zip(channels, BLOCKS, strict=True):
            for _ in range(convolutions):
                layers += [nn.Conv2d(previous, width, kernel_size=3, padding=1), nn.ReLU()]
                previous = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        flat = previous * (log_mel.PATCH_FRAMES // 16) * (log_mel.BANDS // 16)  # four poolings by 2
        self.embeddings = nn.Sequential(
            nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dimensions)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Embedding before any last activation."""
        maps = self.features(patches.unsqueeze(1))  # [n, C, 6, 4]
        # The weights were trained with channels last: time, band, channel.
        embedded: Tensor = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
        return embedded

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], where: str) -> VGGish:
        """The network of the sizes that ``state`` has; ``where`` names the file in errors.

        Raises:
            RequestError: Keys or shapes are not those of a VGGish.
        """
        blocks = [f"features.{index}.weight" for index in (0, 3, 8, 13)]  # the last convolution of each
        sized = [*blocks, "embeddings.0.weight", "embeddings.4.weight"]
        missing = [key for key in sized if key not in state]
        if missing:
            raise RequestError(f"{where}: not VGGish weights, {', '.join(missing)} missing")
        *channels, hidden, dimensions = (len(state[key]) for key in sized)
        with torch.device("meta"):  # nothing is initialised at random: no random number is drawn
            network = cls(channels, hidden, dimensions)
        try:
            network.load_state_dict(dict(state), assign=True)
        except RuntimeError as error:
            raise RequestError(f"{where}: not VGGish weights: {str(error).splitlines()[-1].strip()}") from error
        return network.eval()


def convert_weights(source: Path, target: Path) -> None:
    """Read torch weights as plain data and keep them as safetensors at ``target``."""
    from safetensors.torch import save

    state = {name: array.contiguous() for name, array in read_weights(source).items()}
    VGGish.from_state(state, str(source))
    metadata = {"source": source.name, "source_sha256": sha256_of(source)}
    write_atomic(target, save(state, metadata=metadata))


def vggish_weights(weights: str | Path | None, sha256: str | None) -> Path:
    """The safetensors or torch file to load: the named one, the converted one in the cache, or a download.

    Without ``sha256`` a torch file must be the published one; a local safetensors file is not checked, since the hash
    of its content is part of the embedding's identity.

    Raises:
        RequestError: No such file, another hash, or safetensors from the Hub without a hash to check them by.
    """
    if weights is not None:
        path = Path(weights)
        if str(weights).startswith(HUB_SCHEME):
            if sha256 is None and path.suffix == ".safetensors":
                raise RequestError(f"{weights}: state the sha256 of a file that comes from elsewhere, in `sha256`")
            path = fetch_file(str(weights))
        check_file(path, WEIGHTS_SHA256 if sha256 is None and path.suffix != ".safetensors" else sha256)
        return path
    folder = cache_folder() / "vggish"
    converted = folder / CONVERTED_NAME
    if not converted.is_file():
        original = download(WEIGHTS_URL, folder / Path(WEIGHTS_URL).name, WEIGHTS_SHA256)
        convert_weights(original, converted)
        original.unlink()
    return converted


class VGGishEmbedding(Embedding):
    """VGGish rows: 128 numbers for each 0.96 s (or for 1 s every 0.5 s).

    Args:
        weights: Local weights file or ``hf://OWNER/NAME/PATH``; None for the published ones (downloaded once, 289 MB).
        sha256: Expected sha256 of the file; see :func:`vggish_weights`.
        framing: ``contiguous`` or ``google``.
        activation: Put a ReLU after the last layer.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        sha256: str | None = None,
        framing: str = "contiguous",
        activation: bool = False,
    ) -> None:
        log_mel.check_framing(framing)
        path = vggish_weights(weights, sha256)
        state = read_weights(path)
        network = VGGish.from_state(state, str(path))
        dimensions = len(state["embeddings.4.weight"])
        weights_sha256 = content_sha256(state, {})
        settings = {"weights_sha256": weights_sha256, "framing": framing, "activation": activation, "pca": False}
        level = log_mel.level_of(framing)
        super().__init__("vggish", log_mel.RATE_HZ, dimensions, settings, path.name, network, level)
        self.framing, self.activation = framing, activation

    def clip_rows(self, waveform: Tensor) -> Tensor:
        """Rows ``[n, 128]``, one a patch."""
        patches = log_mel.patches(waveform, self.framing)
        rows = torch.cat([self.network(part.to(self.device)) for part in torch.split(patches, BATCH_PATCHES)])
        return torch.relu(rows) if self.activation else rows
