"""Guidance, truncation and draws against plain arithmetic and against the distribution that was asked for."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hafm_lightning.modeling.sampling import (
    SamplingOptions,
    choose,
    guide,
    keep_top_k,
    keep_top_p,
    uniform_numbers,
)

LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.9, 0.0, -3.0, 1.0])


def plain_probabilities(logits, options):
    """Probability of each id, by sorting and adding up in Python floats."""
    scaled = [value / options.temperature for value in logits.tolist()]
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    kept = order[: options.top_k]
    weights = {i: math.exp(scaled[i]) for i in kept}
    total = sum(weights.values())
    if options.top_p is not None:
        reached, few = 0.0, []
        for i in kept:
            if reached >= options.top_p:
                break
            few.append(i)
            reached += weights[i] / total
        weights = {i: weights[i] for i in few}
        total = sum(weights.values())
    return [weights.get(i, 0.0) / total for i in range(len(scaled))]


def test_guidance_is_the_papers_formula():
    conditioned, unconditioned = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    for scale in (0.0, 0.5, 1.0, 3.0):
        for place in itertools.product(range(2), range(3), range(5)):
            c, u = float(conditioned[place]), float(unconditioned[place])
            assert float(guide(conditioned, unconditioned, scale)[place]) == pytest.approx(
                u + scale * (c - u), abs=1e-5
            )


@pytest.mark.parametrize("top_k", [1, 2, 3, 7, 100, None])
def test_top_k_keeps_the_largest_as_they_are(top_k):
    kept = keep_top_k(LOGITS, top_k)
    largest = sorted(LOGITS.tolist(), reverse=True)[: top_k if top_k is not None else 7]
    assert [value for value in kept.tolist() if value > -math.inf] == [v for v in LOGITS.tolist() if v in largest]


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.75, 0.9, 0.999, 1.0, None])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p):
    kept = [i for i, value in enumerate(keep_top_p(LOGITS, top_p).tolist()) if value > -math.inf]
    probabilities = plain_probabilities(LOGITS, SamplingOptions(temperature=1.0, top_k=None))
    mass = sum(probabilities[i] for i in kept)
    if top_p is None or top_p == 1.0:
        assert kept == list(range(7))
        return
    assert mass >= top_p
    assert mass - min(probabilities[i] for i in kept) < top_p  # without its least likely token it falls short
    assert min(probabilities[i] for i in kept) >= max([probabilities[i] for i in range(7) if i not in kept] or [0])


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=20),
    uniform=st.floats(0, 1, width=32, exclude_max=True),
    temperature=st.sampled_from([0.1, 0.9, 1.0, 4.0]),
    top_k=st.sampled_from([None, 1, 2, 5]),
    top_p=st.sampled_from([None, 0.2, 0.9]),
)
def test_a_draw_inverts_the_cumulative_distribution(values, uniform, temperature, top_k, top_p):
    if len(set(values)) < len(values):
        return  # ties are below
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = torch.tensor(values)
    token = int(choose(logits, torch.tensor(uniform), options))
    probabilities = plain_probabilities(logits.double(), options)
    assert probabilities[token] > 0 or max(probabilities) < 1e-6
    below = sum(probabilities[:token])
    assert below - 1e-4 <= uniform <= below + probabilities[token] + 1e-4


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=1.0, top_k=None),
        SamplingOptions(temperature=0.5, top_k=4),
        SamplingOptions(temperature=2.0, top_k=None, top_p=0.8),
    ],
)
def test_many_draws_follow_the_distribution(options):
    draws = 40_000
    uniform = uniform_numbers([11], (draws,))[0]
    tokens = choose(LOGITS.expand(draws, -1), uniform, options)
    counts = torch.bincount(tokens, minlength=7).tolist()
    expected = plain_probabilities(LOGITS, options)
    possible = [i for i in range(7) if expected[i] > 0]
    assert sum(counts[i] for i in possible) == draws  # what was cut off never comes
    statistic = sum((counts[i] - draws * expected[i]) ** 2 / (draws * expected[i]) for i in possible)
    freedom = len(possible) - 1
    # Wilson-Hilferty: (chi2 / n)^(1/3) is nearly normal; 3.7 standard deviations are p = 1e-4
    limit = freedom * (1 - 2 / (9 * freedom) + 3.7 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


def test_the_ends_of_the_unit_interval_fall_on_possible_tokens():
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    options = SamplingOptions(temperature=1.0, top_k=None)
    almost_one = torch.tensor(1.0).nextafter(torch.tensor(0.0))
    assert int(choose(logits, torch.tensor(0.0), options)) == 1
    assert int(choose(logits, torch.tensor(0.5), options)) == 3
    assert int(choose(logits, almost_one, options)) == 3
    assert int(choose(torch.randn(5000), almost_one, options)) < 5000


@pytest.mark.parametrize("options", [SamplingOptions(temperature=0.0), SamplingOptions(temperature=0.7, top_k=1)])
def test_greedy_takes_the_first_of_the_likeliest_even_when_they_tie(options):
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0]]).bfloat16()
    for number in (0.0, 0.4, 0.99):
        assert choose(logits, torch.full((2,), number), options).tolist() == [1, 0]


def test_draws_keep_any_leading_shape():
    logits, uniform = torch.randn(2, 3, 4, 9), torch.rand(2, 3, 4)
    tokens = choose(logits, uniform, SamplingOptions())
    assert tokens.shape == (2, 3, 4)
    assert tokens.dtype == torch.int64
    for place in itertools.product(range(2), range(3), range(4)):
        assert int(choose(logits[place], uniform[place], SamplingOptions())) == int(tokens[place])


def test_uniform_numbers_of_a_clip_depend_on_its_seed_alone():
    together = uniform_numbers([4, 9, 4], (2, 50))
    assert together.shape == (3, 2, 50)
    assert torch.equal(together[1], uniform_numbers([9], (2, 50))[0])
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    assert together.min() >= 0
    assert together.max() < 1
    assert uniform_numbers([], (2, 50)).shape == (0, 2, 50)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"guidance": -0.1}, "guidance"),
        ({"guidance": math.nan}, "guidance"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_impossible_options_are_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        SamplingOptions(**wrong)


@pytest.mark.parametrize("top_p", [1e-300, 1e-46, 1e-7])
def test_the_least_top_p_keeps_the_likeliest_token(top_p: float) -> None:
    logits = torch.randn(5, 7)
    kept = keep_top_p(logits, top_p)
    assert torch.equal(kept.argmax(-1), logits.argmax(-1))
    assert torch.equal((kept > -torch.inf).sum(-1), torch.ones(5, dtype=torch.int64))


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": 1e308},
        {"guidance": float("inf")},
        {"guidance": "3"},
        {"guidance": True},
        {"temperature": 1e-300},
        {"temperature": float("nan")},
        {"temperature": 1e300},
        {"top_k": 2.0},
        {"top_k": True},
        {"top_p": float("nan")},
        {"top_p": "0.9"},
    ],
    ids=str,
)
def test_settings_that_no_draw_can_be_made_with_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplingOptions(**options)  # type: ignore[arg-type]
