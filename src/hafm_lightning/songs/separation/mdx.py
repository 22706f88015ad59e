"""MDX-Net: separation by a network that maps the complex spectrogram of a mixture to that of one stem.

    song      |---------------------------------------------------------------|
    chunk k          [ edge |          middle, cross-faded          | edge ]
    chunk k+1                                        [ edge |          middle ...

A chunk, the model's input, has ``hop * (dim_t - 1)`` samples. Its edges, at least ``n_fft`` samples on each side, are
computed and dropped, since their frames extend beyond the chunk; the middles overlap and are cross-faded with weights
that sum to 1. Chunks are on a grid of whole hops that starts at the song's beginning, so that the value of a sample is
the same in every stretch that is separated.

Source: Kim et al., "KUIELab-MDX-Net: A two-stream neural network for music demixing", 2021.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hafm_lightning.audio import Samples, SoundWarning
from hafm_lightning.errors import RequestError
from hafm_lightning.songs.separation.base import MdxParameters, Runtime, SeparationSettings, Stems
from hafm_lightning.songs.separation.known_models import HOP, KnownModel, known_model
from hafm_lightning.untrusted import read_json

_NAMES = tuple(field.name for field in fields(MdxParameters))
_TARGETS = ("vocals", "instrumental")
_LARGEST_EXPONENT = 13  # of dim_t; the public models have 7 to 9
_RANGES: dict[str, tuple[float, float]] = {
    "n_fft": (64, 65_536),
    "hop": (1, 32_768),
    "dim_f": (1, 32_769),
    "dim_t": (2, 2**_LARGEST_EXPONENT),
    "compensation": (0.1, 10.0),
}
_CUDA = "CUDAExecutionProvider"
_CHANNELS = 4  # left and right, real and imaginary


@dataclass(frozen=True)
class MdxShape:
    """:class:`MdxParameters` with every value set."""

    n_fft: int
    hop: int
    dim_f: int
    dim_t: int
    compensation: float
    target: str


class MdxSeparator:
    """Runs an MDX-Net model by onnxruntime."""

    def __init__(self, path: Path, sha256: str, settings: SeparationSettings) -> None:
        """RequestError if onnxruntime is not installed, the file is not an MDX-Net, or its shape is unknown."""
        self.rate_hz = 44_100
        self._session, self.runtime = _session(path, settings)
        source = self._session.get_inputs()[0]
        self.shape = read_shape(path, settings.parameters, list(source.shape))
        self._input = source.name
        self._batch_size = settings.batch_size if not isinstance(source.shape[0], int) else source.shape[0]
        hop = self.shape.hop
        self._chunk = hop * (self.shape.dim_t - 1)
        self._edge = hop * math.ceil(self.shape.n_fft / hop)
        self._middle = self._chunk - 2 * self._edge
        if self._middle < 1:
            raise RequestError(f"{path}: {self.shape} gives no middle of a chunk; correct n_fft, hop or dim_t")
        self._step = min(hop * max(1, round(self._middle * (1 - settings.overlap) / hop)), self._middle)
        self._fade = self._middle - self._step
        self._window = torch.hann_window(self.shape.n_fft, periodic=True, dtype=torch.float32)
        self.margin_s = float(math.ceil(self._chunk / self.rate_hz))
        origin = {"kind": "mdx-net", "sha256": sha256, "overlap": settings.overlap}
        self.identity: dict[str, Any] = origin | asdict(self.shape)

    def separate(self, mixture: Samples, first: int = 0) -> Stems:
        """Separate ``[2, L]`` at 44.1 kHz, a stretch that begins at sample ``first`` of its song."""
        with self.runtime.counting(mixture.shape[1] / self.rate_hz):
            return self._separate(mixture, first)

    def _separate(self, mixture: Samples, first: int) -> Stems:
        length = mixture.shape[1]
        # The middle of chunk k has the song's samples k * step - fade to k * step - fade + middle. The model runs for
        # all chunks whose middle overlaps the stretch.
        first_chunk = (first + self._fade - self._middle) // self._step + 1
        last_chunk = (first + length - 1 + self._fade) // self._step
        begin = first_chunk * self._step - self._fade - self._edge - first
        end = last_chunk * self._step - self._fade - self._edge + self._chunk - first
        padded = np.pad(mixture, ((0, 0), (-begin, max(0, end - length))))
        target = np.zeros((2, end - begin), np.float32)
        weights = self._weights()
        numbers = range(last_chunk - first_chunk + 1)
        for batch_start in range(0, len(numbers), self._batch_size):
            batch = numbers[batch_start : batch_start + self._batch_size]
            chunks = np.stack([padded[:, n * self._step : n * self._step + self._chunk] for n in batch])
            for n, middle in zip(batch, self._run(chunks), strict=True):
                start = n * self._step + self._edge
                target[:, start : start + self._middle] += middle * weights
        target = target[:, -begin : -begin + length] * np.float32(self.shape.compensation)
        rest = mixture - target
        vocals, instrumental = (target, rest) if self.shape.target == "vocals" else (rest, target)
        return Stems(vocals, instrumental)

    def _weights(self) -> Samples:
        """Cross-fade of a chunk's middle, ``[middle]``: chunks ``step`` apart sum to 1, whatever number overlaps."""
        middle, step = self._middle, self._step
        ramp = np.minimum(np.arange(1, middle + 1), self._fade + 1) / (self._fade + 1)
        overlapping = math.ceil(middle / step)
        weights = np.pad(np.minimum(ramp, ramp[::-1]), (0, overlapping * step - middle)).reshape(overlapping, step)
        return np.asarray((weights / weights.sum(axis=0)).reshape(-1)[:middle], np.float32)

    def _run(self, chunks: Samples) -> Samples:
        """Chunks ``[n, 2, chunk]`` -> the model's stem in their middles, ``[n, 2, middle]``."""
        count = len(chunks)
        if count < self._batch_size and isinstance(self._session.get_inputs()[0].shape[0], int):
            chunks = np.concatenate((chunks, np.zeros((self._batch_size - count, *chunks.shape[1:]), np.float32)))
        shape = self.shape
        sound = torch.from_numpy(chunks).reshape(-1, self._chunk)
        frames: dict[str, Any] = {"window": self._window, "center": True}
        # [n * 2, bins, dim_t]
        spectrum = torch.stft(sound, shape.n_fft, shape.hop, **frames, pad_mode="constant", return_complex=True)
        bins = spectrum.shape[1]
        planes = torch.view_as_real(spectrum).permute(0, 3, 1, 2).reshape(-1, _CHANNELS, bins, shape.dim_t)
        result = self._session.run(None, {self._input: planes[:, :, : shape.dim_f].contiguous().numpy()})[0]
        full = torch.zeros_like(planes)
        full[:, :, : shape.dim_f] = torch.from_numpy(np.asarray(result))
        paired = full.reshape(-1, 2, bins, shape.dim_t).permute(0, 2, 3, 1).contiguous()
        sound = torch.istft(torch.view_as_complex(paired), shape.n_fft, shape.hop, **frames, length=self._chunk)
        middles: Samples = sound.reshape(-1, 2, self._chunk)[:count, :, self._edge : self._edge + self._middle].numpy()
        return middles


def _session(path: Path, settings: SeparationSettings) -> tuple[Any, Runtime]:
    try:
        import onnxruntime
    except ImportError:
        raise RequestError(
            "MDX-Net separation needs onnxruntime: pip install 'hafm-lightning[separation]'\nor use a corpus of stems"
        ) from None
    wanted = ["CPUExecutionProvider"] if settings.device == "cpu" else [_CUDA, "CPUExecutionProvider"]
    available = onnxruntime.get_available_providers()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A worker also holds the tokenizers. Planned memory takes 0.4 GiB more for a full-size MDX-Net and is no faster; an
    # arena would save an eighth of the time, but keep a chunk's memory while the tokenizers run.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    providers = [provider for provider in wanted if provider in available]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers)
    except Exception as error:  # onnxruntime's own exceptions have no common base but Exception
        raise RequestError(f"{path} is not a usable ONNX model: {' '.join(str(error).split())[:200]}") from error
    provider = session.get_providers()[0]
    # onnxruntime falls back to the CPU without an error.
    if settings.device == "cpu" or provider == _CUDA:
        return session, Runtime(provider)
    built = f"onnxruntime {onnxruntime.__version__} has no CUDA provider here: pip install onnxruntime-gpu"
    note = f"{_CUDA} did not start: check the driver, CUDA and cuDNN" if _CUDA in available else built
    if settings.device == "cuda":
        raise RequestError(f"separation.device is cuda, but {note}\nor set separation.device: cpu")
    return session, Runtime(provider, note)


def read_shape(path: Path, given: MdxParameters, inputs: list[Any]) -> MdxShape:
    """The model's shape: from the configuration, the JSON beside the model, the table of public models, or its input.

    RequestError if a value is missing or impossible, contradicts the model's input or the table, or if the model writes
    neither vocals nor the instrumental.
    """
    if len(inputs) != 4 or (isinstance(inputs[1], int) and inputs[1] != _CHANNELS):
        raise RequestError(f"{path}: input {inputs} is not an MDX-Net's [batch, {_CHANNELS}, dim_f, dim_t]")
    fixed = {name: size for name, size in zip(("dim_f", "dim_t"), inputs[2:], strict=True) if isinstance(size, int)}
    beside = path.with_suffix(".json")
    described = _read_json(beside) if beside.is_file() else {}
    set_here = {name: value for name, value in asdict(given).items() if value is not None}
    known = known_model(path)
    if known is not None and known.karaoke:
        text = f"{path} is UVR's {known.name}: it takes the lead voice alone, backing vocals stay with the instruments"
        warnings.warn(text, SoundWarning, stacklevel=2)
    listed = _listed(path, known) if known is not None else {}
    for name in (name for name in listed if name != "compensation"):
        for source, values in ((beside.name, described), ("separation.parameters", set_here)):
            if name in values and values[name] != listed[name]:
                raise RequestError(
                    f"{path} is UVR's {known.name if known and known.name else 'model'}, whose {name} is "
                    f"{listed[name]}, but {source} says {values[name]}\ncorrect or remove that value"
                )
    neutral = {"compensation": 1.0} if described else {}
    values = {"hop": HOP} | neutral | fixed | listed | described | set_here
    missing = [name for name in reversed(_NAMES) if name not in values]
    if missing:
        raise RequestError(
            f"{path}: {', '.join(missing)} of the model unknown; it is none of UVR's public models\n"
            f"set them in {beside.name} beside the model, or under separation.parameters\n"
            "target is the stem that the model writes, vocals or instrumental"
        )
    _check_values(path, values)
    for name, size in fixed.items():
        if size != values[name]:
            raise RequestError(f"{path}: the model's {name} is {size}, the settings say {values[name]}")
    sizes = {name: int(values[name]) for name in ("n_fft", "hop", "dim_f", "dim_t")}
    return MdxShape(**sizes, compensation=float(values["compensation"]), target=str(values["target"]))


def _listed(path: Path, known: KnownModel) -> dict[str, Any]:
    """Values of a model in the table; RequestError if it writes another stem."""
    target = known.stem.lower()
    if target not in _TARGETS:
        raise RequestError(
            f"{path} is UVR's {known.name}, which writes {known.stem!r}, not vocals or the instrumental; "
            "use another model (Kim_Vocal_2.onnx, UVR-MDX-NET-Voc_FT.onnx)"
        )
    sizes = {"n_fft": known.n_fft, "hop": HOP, "dim_f": known.dim_f, "dim_t": known.dim_t}
    return sizes | {"compensation": known.compensation, "target": target}


def _check_values(path: Path, values: dict[str, Any]) -> None:
    """RequestError for values of another type, beyond every model, or in contradiction to each other."""
    for name, (least, most) in _RANGES.items():
        value = values[name]
        kind = (int, float) if name == "compensation" else int
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
            wanted = "a number" if name == "compensation" else "a whole number"
            raise RequestError(f"{path}: {name} must be {wanted} from {least} to {most}, got {value!r:.40}")
    if values["target"] not in _TARGETS:
        raise RequestError(f"{path}: target is {values['target']!r:.40}, choose vocals or instrumental")
    if values["dim_f"] > values["n_fft"] // 2 + 1 or values["hop"] > values["n_fft"] // 2:
        shown = ", ".join(f"{name} {values[name]}" for name in ("n_fft", "hop", "dim_f", "dim_t"))
        raise RequestError(f"{path}: {shown} contradict each other; correct them")


def _read_json(path: Path) -> dict[str, Any]:
    """Values by the names of :class:`MdxParameters`, or by those of the public lists of MDX-Net models."""
    content = read_json(path, what="the model's description", advice="correct the file")
    if not isinstance(content, dict):
        raise RequestError(f"{path}: the model's description is no JSON object; correct the file")
    values = {name: content[name] for name in _NAMES if name in content}
    listed = {"n_fft": "mdx_n_fft_scale_set", "dim_f": "mdx_dim_f_set", "compensation": "compensate"}
    values |= {name: content[theirs] for name, theirs in listed.items() if theirs in content}
    if "mdx_dim_t_set" in content:
        exponent = content["mdx_dim_t_set"]  # the lists have the exponent
        if isinstance(exponent, bool) or not isinstance(exponent, int) or not 1 <= exponent <= _LARGEST_EXPONENT:
            raise RequestError(
                f"{path}: mdx_dim_t_set must be a whole number from 1 to {_LARGEST_EXPONENT}, an exponent of 2, "
                f"got {exponent!r:.40}; correct the file"
            )
        values["dim_t"] = 2**exponent
    if "primary_stem" in content:
        values["target"] = str(content["primary_stem"]).lower()
    return values
