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

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hafm_lightning.audio import Samples
from hafm_lightning.errors import RequestError
from hafm_lightning.songs.separation.base import MdxParameters, SeparationSettings, Stems

_NAMES = tuple(field.name for field in fields(MdxParameters))
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
        self._session = _session(path, settings)
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


def _session(path: Path, settings: SeparationSettings) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise RequestError(
            "MDX-Net separation needs onnxruntime: pip install 'hafm-lightning[separation]'\nor use a corpus of stems"
        ) from None
    available = onnxruntime.get_available_providers()
    if settings.device == "cuda" and "CUDAExecutionProvider" not in available:
        raise RequestError(
            "separation.device is cuda, but this onnxruntime has no CUDA provider\n"
            "pip install onnxruntime-gpu, or set separation.device: cpu"
        )
    wanted = ["CPUExecutionProvider"] if settings.device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
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
        return onnxruntime.InferenceSession(str(path), options, providers)
    except Exception as error:  # onnxruntime's own exceptions have no common base but Exception
        raise RequestError(f"{path} is not a usable ONNX model: {' '.join(str(error).split())[:200]}") from error


def read_shape(path: Path, given: MdxParameters, inputs: list[Any]) -> MdxShape:
    """The model's shape: from the configuration, else from the JSON beside the model, else from the model's input.

    RequestError if a value is missing, or contradicts the model's input.
    """
    if len(inputs) != 4 or (isinstance(inputs[1], int) and inputs[1] != _CHANNELS):
        raise RequestError(f"{path}: input {inputs} is not an MDX-Net's [batch, {_CHANNELS}, dim_f, dim_t]")
    fixed = {name: size for name, size in zip(("dim_f", "dim_t"), inputs[2:], strict=True) if isinstance(size, int)}
    beside = path.with_suffix(".json")
    values: dict[str, Any] = {"hop": 1024, "compensation": 1.0, "target": "vocals"} | fixed
    values |= _read_json(beside) if beside.is_file() else {}
    values |= {name: value for name, value in asdict(given).items() if value is not None}
    missing = [name for name in _NAMES if name not in values]
    if missing:
        raise RequestError(
            f"{path}: {', '.join(missing)} of the model unknown\n"
            f"set them in {beside.name} beside the model, or under separation.parameters"
        )
    try:
        sizes = {name: int(values[name]) for name in ("n_fft", "hop", "dim_f", "dim_t")}
        shape = MdxShape(**sizes, compensation=float(values["compensation"]), target=str(values["target"]))
    except (TypeError, ValueError) as error:
        raise RequestError(f"{beside}: {error}; correct the file") from error
    for name, size in fixed.items():
        if size != getattr(shape, name):
            raise RequestError(f"{path}: the model's {name} is {size}, the settings say {getattr(shape, name)}")
    if shape.target not in ("vocals", "instrumental"):
        raise RequestError(f"{path}: target is {shape.target!r}, choose vocals or instrumental")
    if not 0 < shape.dim_f <= shape.n_fft // 2 + 1 or shape.hop < 1 or shape.hop > shape.n_fft // 2:
        raise RequestError(f"{path}: the values of {shape} contradict each other; correct n_fft, hop, dim_f or dim_t")
    return shape


def _read_json(path: Path) -> dict[str, Any]:
    """Values by the names of :class:`MdxParameters`, or by those of the public lists of MDX-Net models."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        values = {name: content[name] for name in _NAMES if name in content}
        listed = {"n_fft": "mdx_n_fft_scale_set", "dim_f": "mdx_dim_f_set", "compensation": "compensate"}
        values |= {name: content[theirs] for name, theirs in listed.items() if theirs in content}
        if "mdx_dim_t_set" in content:
            values["dim_t"] = 2 ** int(content["mdx_dim_t_set"])  # the lists have the exponent
        if "primary_stem" in content:
            values["target"] = str(content["primary_stem"]).lower()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"{path} cannot be used: {error}; correct the file") from error
    return values
