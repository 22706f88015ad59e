"""Patterns as bijections, and every step's stream, codebook, frame and time against a slow computation."""

from fractions import Fraction
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import RICH_CONDITIONS

from hafm_lightning.modeling.layout import (
    TIMELESS,
    Pattern,
    SequenceLayout,
    deinterleave,
    interleave,
    prediction_steps,
)
from hafm_lightning.tokens import EMPTY, stream_named

PATTERNS = get_args(Pattern)


@st.composite
def codes(draw):
    batch, codebooks, frames = draw(st.integers(1, 3)), draw(st.integers(1, 8)), draw(st.integers(1, 12))
    return torch.randint(
        1024, (batch, codebooks, frames), generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
    )


# --- interleaving -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=60, deadline=None)
@given(codes=codes())
def test_interleaving_has_an_exact_inverse(pattern, codes):
    grid = interleave(codes, pattern)
    assert torch.equal(deinterleave(grid, pattern, codes.shape[1]), codes)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=30, deadline=None)
@given(codes=codes())
def test_every_token_stands_at_its_step_and_nothing_else_does(pattern, codes):
    batch, codebooks, frames = codes.shape
    grid = interleave(codes, pattern)
    seen = torch.zeros_like(grid, dtype=torch.bool)
    for k in range(codebooks):
        steps = range(grid.shape[-1])[prediction_steps(pattern, codebooks, frames, k)]
        assert len(steps) == frames
        for t, step in enumerate(steps):
            place = {"flattened": (0, t * codebooks + k), "delay": (k, t + k)}.get(pattern, (k, t))
            assert step == place[1]
            assert torch.equal(grid[:, place[0], place[1]], codes[:, k, t])
            seen[:, place[0], place[1]] = True
    assert seen.sum() == batch * codebooks * frames
    assert (grid[~seen] == EMPTY).all()


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=30, deadline=None)
@given(width=st.integers(2, 8), steps=st.integers(8, 24), seed=st.integers(0, 99))
def test_a_grid_without_empty_places_survives_the_way_back(pattern, width, steps, seed):
    """The other direction: where every place of the grid is a token, de-interleaving loses nothing."""
    if pattern == "delay":
        return  # its corners belong to no frame
    steps -= steps % width
    shape = (2, 1 if pattern == "flattened" else width, steps)
    grid = torch.randint(1024, shape, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(interleave(deinterleave(grid, pattern, width), pattern), grid)


def test_steps_that_no_frame_count_makes_are_refused():
    with pytest.raises(ValueError, match="7 flattened steps"):
        deinterleave(torch.zeros(1, 1, 7), "flattened", 4)
    with pytest.raises(ValueError, match="3 delayed steps"):
        deinterleave(torch.zeros(1, 4, 3), "delay", 4)


# --- plans ------------------------------------------------------------------------------------------------------


def slow_plan(conditions, target, pattern, conditioning, duration_s):
    """(segment, codebook, frame, seconds or None, place) of each step, one after the other."""
    steps, place = [], 0
    for segment, name in enumerate(conditions):
        stream = stream_named(name)
        count = int(duration_s * stream.rate_hz) if stream.rate_hz else 1
        for frame in range(count if conditioning == "prefix" else 0):
            for book in range(stream.codebooks if pattern == "flattened" else 1):
                seconds = Fraction(frame, stream.rate_hz) if stream.rate_hz else None
                steps.append((segment, book, frame, seconds, place + book))
        place += stream.codebooks
    stream = stream_named(target)
    frames = int(duration_s * stream.rate_hz)
    if pattern == "flattened":
        written = [(frame, book) for frame in range(frames) for book in range(stream.codebooks)]
    else:
        written = [(frame, 0) for frame in range(frames)]
    if pattern == "delay":
        written += [(frames - 1, 0)] * (stream.codebooks - 1)
    for frame, book in written:
        steps.append((len(conditions), book, frame, Fraction(frame, stream.rate_hz), place + book))
    return steps, len(steps) - len(written), frames


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    ("conditions", "target"),
    [
        (("vocal_semantic",), "instrumental_semantic"),
        (("vocal_semantic", "instrumental_semantic"), "instrumental_coarse"),
        (("instrumental_coarse",), "instrumental_fine"),
        (RICH_CONDITIONS, "instrumental_coarse"),
        ((), "instrumental_coarse"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
)
def test_plans_equal_the_slow_computation(conditions, target, pattern, conditioning):
    layout = SequenceLayout.of(list(conditions), target, pattern, conditioning)
    expected, condition_steps, frames = slow_plan(conditions, target, pattern, conditioning, Fraction(2, 25))
    plan = layout.plan(frames)
    ticks = [TIMELESS if seconds is None else int(seconds * 150) for *_, seconds, _ in expected]
    for number, name in enumerate(("segment", "codebook", "frame")):
        assert getattr(plan, name).tolist() == [step[number] for step in expected], name
    assert plan.ticks.tolist() == ticks
    assert plan.place.tolist() == [step[-1] for step in expected]
    assert plan.condition_steps == condition_steps
    assert plan.steps == len(expected)
    assert plan.target_steps == len(expected) - condition_steps == layout.target_steps(frames)
    assert plan.target_frames == frames
    assert layout.places == sum(stream_named(name).codebooks for name in (*conditions, target))
    assert set(plan.place.tolist()) <= set(range(layout.places))


@pytest.mark.parametrize(("conditioning", "steps"), [("prefix", (1000, 4000, 6000)), ("aligned", (500, 3000, 3000))])
def test_sequence_steps_of_the_papers_stages_at_10_s(conditioning, steps):
    stages = [
        (["vocal_semantic"], "instrumental_semantic", 500),
        (["vocal_semantic", "instrumental_semantic"], "instrumental_coarse", 750),
        (["instrumental_coarse"], "instrumental_fine", 750),
    ]
    found = [SequenceLayout.of(c, t, "flattened", conditioning).plan(frames).steps for c, t, frames in stages]
    assert tuple(found) == steps


def test_a_plan_is_made_once_and_serves_training_wherever_it_was_made():
    layout = SequenceLayout.of(["vocal_semantic"], "instrumental_coarse")
    with torch.inference_mode():
        plan = layout.plan(27)
    assert layout.plan(27) is plan
    assert SequenceLayout.of(["vocal_semantic"], "instrumental_coarse").plan(27) is plan
    for tensor in (plan.segment, plan.codebook, plan.frame, plan.ticks, plan.place):
        assert not tensor.is_inference()
        assert tensor.dtype == torch.int64


def test_a_plan_made_while_measuring_on_the_meta_device_is_real():
    with torch.device("meta"):
        plan = SequenceLayout.of(["instrumental_coarse"], "instrumental_fine").plan(21)
    assert {plan.segment.device.type, plan.ticks.device.type, plan.place.device.type} == {"cpu"}


def test_conditions_on_the_targets_clock():
    layout = SequenceLayout.of(["vocal_semantic", "style"], "instrumental_coarse", "flattened", "aligned")
    vocal, style = layout.alignment(6)
    assert vocal.tolist() == [0, 1, 1, 2, 3, 3]  # 50 Hz frames under the middles of 75 Hz frames
    assert style.tolist() == [0] * 6


def test_layouts_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"unknown pattern 'diagonal'.*delay"):
        SequenceLayout.of(["vocal_semantic"], "instrumental_coarse", "diagonal")
    with pytest.raises(ValueError, match="unknown conditioning 'cross'"):
        SequenceLayout.of(["vocal_semantic"], "instrumental_coarse", "delay", "cross")
    with pytest.raises(ValueError, match="streams must differ"):
        SequenceLayout.of(["instrumental_coarse"], "instrumental_coarse")
    with pytest.raises(ValueError, match="only be a condition"):
        SequenceLayout.of(["vocal_semantic"], "style")
    with pytest.raises(ValueError, match="unknown token stream 'voice'"):
        SequenceLayout.of(["voice"], "instrumental_coarse")
    layout = SequenceLayout.of(["vocal_semantic"], "instrumental_coarse")
    with pytest.raises(ValueError, match=r"5 frames.*multiples of 0.04 s"):
        layout.plan(5)
    with pytest.raises(ValueError, match="at least 1"):
        layout.plan(0)


def test_only_the_nonautoregressive_pattern_looks_both_ways():
    for pattern in PATTERNS:
        layout = SequenceLayout.of(["vocal_semantic"], "instrumental_coarse", pattern)
        assert layout.causal == (pattern != "nonautoregressive")
        assert layout.tokens_per_step == (1 if pattern == "flattened" else 4)
