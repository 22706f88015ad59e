"""Whether fused decoding steps may be used: each kind is compared with PyTorch's operations before its first use.

The trial decodes two steps of random numbers in a short window of its own, with the rows and the weights of the decoder
that asks, and compares logits, cache and drawn tokens. What it found is kept for the process. Without Triton, on a chip
that is too old, where a kernel cannot be built, and where it computes something else, decoding is left to PyTorch's
operations, with one warning. A mistake in the kernels' code, and lack of memory, are errors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hafm_lightning.kernels.cuda.decoding import fused_step
from hafm_lightning.kernels.cuda.decoding.fused_step import FusedStep
from hafm_lightning.kernels.cuda.flex_tiles import build_failure
from hafm_lightning.kernels.cuda.triton_blocks import Chip, unusable
from hafm_lightning.kernels.cuda.triton_passes import precision_of
from hafm_lightning.modeling.decoding import UNKNOWN, Decoder
from hafm_lightning.modeling.sampling import choose, guided

DTYPES = (torch.bfloat16, torch.float32)
"""Types of weights that the kernels read."""
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 3e-2}
"""The largest difference that rounding explains, over the largest number, by what is multiplied.

At the paper's size, steps of PyTorch's operations in bfloat16 are 0.007 to 0.017 from the same weights in float32.
"""
STEPS_BEYOND_SHORT = 256
"""So many more steps than one part of attention serves make several parts of any size."""
MOST_ROWS = 64
"""More rows, up to one clip, are not tried: they fill a program of a product, whatever the tiles."""
DRAW_TOLERANCE = 1e-4
"""Sums of probabilities are rounded: a draw from a number so close to the edge of a token may be its neighbour."""


class PlainStep(Decoder):
    """A decoder by PyTorch's operations that keeps the logits of a step, and draws nothing."""

    logits: Tensor

    def _draw(self, logits: Tensor) -> None:
        self.logits = logits


def random_decoder(decoder: Decoder) -> PlainStep:
    """A decoder of another's network, rows and kind of options, in a short window full of random numbers."""
    model, options = decoder.model, decoder.options
    layout, vocabulary = model.layout, decoder.model.head_weight.shape[1]
    unit = math.lcm(*(layout.target.rate_hz // math.gcd(layout.target.rate_hz, s.rate_hz) for s in layout.conditions))
    steps = fused_step.SHORT + STEPS_BEYOND_SHORT
    frames = min(decoder.frames, unit * math.ceil(steps * decoder.frames / decoder.plan.steps / unit))
    # extreme guidance and temperature would turn rounding into other tokens
    options = replace(options, guidance=3.0, temperature=1.0 if options.temperature else 0.0)
    random = PlainStep(model, frames, options, range(min(decoder.batch, MOST_ROWS // decoder.rows + 1)))
    rows = decoder.rows * random.batch
    generator = torch.Generator(decoder.device).manual_seed(0)
    random.rows = decoder.rows
    random.cache = model.cache(rows, random.plan.steps)
    random.cache.entries.normal_(generator=generator)
    random.grid.random_(0, vocabulary, generator=generator)
    if decoder.clocked is not None:
        random.clocked = decoder.clocked.new_empty(rows, frames, decoder.clocked.shape[-1])
        random.clocked.normal_(generator=generator)
    return random


@torch.inference_mode()
def trial(decoder: Decoder) -> str | None:
    """Why the fused step of a decoder is not to be used, or None; the decoder itself stays as it is."""
    random = random_decoder(decoder)
    index = torch.zeros(1, dtype=torch.int64, device=decoder.device)
    try:
        step = FusedStep(random, index)
        for back, parts in enumerate(sorted({step.parts(1), step.parts(random.plan.steps)})):
            random.step = random.plan.target_steps - 1 - back
            index.fill_(random.step)
            reason = wrong_logits(step, random, parts) or (wrong_draw(step, random) if step.draws else None)
            if reason is not None:
                return reason
    except Exception as error:
        reason = build_failure(error)
        if reason is None:
            raise
        return reason
    return None


def wrong_logits(step: FusedStep, random: PlainStep, parts: int) -> str | None:
    """How logits and cache after a fused step differ from those after PyTorch's operations, or None."""
    assert random.cache is not None
    entries = random.cache.entries
    before, new = entries.clone(), entries.select(-2, random.plan.condition_steps + random.step)
    random._compute(random.step % random.steps_per_frame)
    true_new = new.clone()
    new.fill_(math.nan)  # to be written before it is read
    logits = step.logits(parts)
    for name, found, true in (("logits", logits, random.logits), ("keys and values", new, true_new)):
        largest, apart = float(true.abs().max()), float((found.float() - true.float()).abs().max())
        if not apart <= tolerance(random.model.head_weight.dtype) * largest:  # nor where one of them is NaN
            return f"its {name} are {apart:.3g} from those of PyTorch's operations, which reach {largest:.3g}"
    new.copy_(before.select(-2, random.plan.condition_steps + random.step))
    return None if torch.equal(entries, before) else "it writes to other steps of the cache"


def wrong_draw(step: FusedStep, random: PlainStep) -> str | None:
    """How the tokens that are drawn from the step's last logits are wrong, or None."""
    random.grid[:, :, random.step] = UNKNOWN
    before, logits = random.grid.clone(), guided(step.last_logits, random.rows, random.options)
    step.draw()
    drawn, uniform = random.grid[:, :, random.step], random.uniform[:, :, random.step]
    first, last = (
        choose(logits, (uniform + shift).clamp(0, 1), random.options) for shift in (-DRAW_TOLERANCE, DRAW_TOLERANCE)
    )
    if not bool(((first <= drawn) & (drawn <= last)).all()):
        return f"it draws {drawn.flatten().tolist()[:4]} where PyTorch's operations draw {first.flatten().tolist()[:4]}"
    before[:, :, random.step] = drawn
    return None if torch.equal(random.grid, before) else "it writes tokens of other steps"


def tolerance(dtype: torch.dtype) -> float:
    """:data:`TOLERANCE` of a type of weights, as PyTorch is set to multiply it."""
    return TOLERANCE["tf32" if precision_of(dtype) == "tf32" else str(dtype).removeprefix("torch.")]


@dataclass
class StepSettings:
    """Why fused steps are not used, or None, by device, type, network and kind of step that was tried."""

    found: dict[object, str | None] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    chip_of: Callable[[torch.device], Chip] = Chip.of

    def step_of(self, decoder: Decoder, index: Tensor) -> FusedStep | None:
        """The fused step of a decoder; None, with one warning, where it is not to be used."""
        model = decoder.model
        chip, dtype = self.chip_of(model.device), model.head_weight.dtype
        odd = None if dtype in DTYPES else f"the kernels have no weights of {dtype}"
        reason = unusable(model.device) or chip.misfit or odd
        if reason is None:
            step = FusedStep(decoder, index)
            key = (model.device, dtype, model.config, step.kind)
            if key not in self.found:
                self.found[key] = trial(decoder)
            reason = self.found[key]
            if reason is None:
                return step
        line = f"fused decoding steps are not used on {chip.name}; PyTorch's operations stand in: slower ({reason})"
        if line not in self.warned:
            self.warned.add(line)
            warnings.warn(line, stacklevel=2)
        return None


settings = StepSettings()
