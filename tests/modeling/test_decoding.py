"""Cached, guided decoding against teacher forcing, which tests/test_token_model.py holds against a slow reference.

Logits are compared, not only tokens: :func:`decode` records what every step's draw was made from.
"""

import pytest
import torch
from tiny_decoding import EVERY, FRAMES, GUIDED, PATTERNS, PLAIN, TARGET, record_logits, setting
from tiny_models import tiny_config, tiny_model, tiny_streams

from hafm_lightning.modeling import attention
from hafm_lightning.modeling.conditioning import null_conditions
from hafm_lightning.modeling.decoding import Decoder, generate, target_frames
from hafm_lightning.modeling.filling import fill
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.tokens import NULL

pytestmark = pytest.mark.usefixtures("kernels")
ONE_EACH = [pytest.param(*case.values, id=case.id) for case in (EVERY[0], EVERY[2], EVERY[4], EVERY[6], EVERY[10])]


@pytest.fixture
def recorded(monkeypatch):
    """Guided logits of every draw, in order, each ``[B, W, V]`` (``[B, T, V]`` for whole codebooks)."""
    return record_logits(monkeypatch, "choose")


@pytest.fixture
def recorded_rows(monkeypatch):
    """Logits of every row before guidance, in order, each ``[rows B, W, V]`` (``[rows B, T, V]``)."""
    return record_logits(monkeypatch, "guided")


def by_token(pattern, logits, first_step):
    """Logits of the steps from ``first_step`` on -> (codebook, frame) -> ``[B, V]``."""
    found = {}
    for k in range(4):
        for t in range(FRAMES):
            step, slot = {"flattened": (4 * t + k, 0), "delay": (t + k, k), "parallel": (t, k)}[pattern]
            if step >= first_step:
                found[k, t] = logits[step - first_step][:, slot]
    return found


@torch.no_grad()
def teacher_forced(model, conditions, tokens, guidance):
    """Logits ``[B, K, T, V]`` of two full passes, mixed by guidance."""
    true = model({**conditions, TARGET: tokens})
    null = model({**null_conditions(conditions, model.layout.conditions), TARGET: tokens})
    return null + guidance * (true - null)


def assert_same_logits(found, expected, tolerance=1e-5):
    for (k, t), logits in found.items():
        torch.testing.assert_close(logits, expected[:, k, t], atol=tolerance, rtol=tolerance, msg=f"q{k} frame {t}")


# --- cached = uncached ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pattern", "conditioning", "bias"), EVERY)
def test_cached_decoding_equals_the_full_forward(pattern, conditioning, bias, recorded):
    model, _, conditions = setting(pattern, conditioning, bias)
    tokens = generate(model, conditions, PLAIN, [0, 1])
    found = by_token(pattern, recorded, 0)
    assert len(found) == 4 * FRAMES
    assert_same_logits(found, teacher_forced(model, conditions, tokens, 1.0))
    assert (tokens[0] != tokens[1]).any()


@pytest.mark.parametrize(("pattern", "conditioning", "bias"), EVERY)
def test_batched_guidance_equals_two_passes(pattern, conditioning, bias, recorded, recorded_rows):
    model, _, conditions = setting(pattern, conditioning, bias)
    tokens = generate(model, conditions, GUIDED, [0, 1])
    null = null_conditions(conditions, model.layout.conditions)
    for rows, given in ((slice(0, 2), conditions), (slice(2, 4), null)):
        found = by_token(pattern, [logits[rows] for logits in recorded_rows], 0)
        assert_same_logits(found, teacher_forced(model, given, tokens, 1.0))
    for mixed, logits in zip(recorded, recorded_rows, strict=True):
        assert torch.equal(mixed, logits[2:] + 3.0 * (logits[:2] - logits[2:]))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_cached_decoding_after_a_bidirectional_prefix_equals_the_full_forward(pattern, recorded):
    model, streams, conditions = setting(pattern, prefix_mask="bidirectional")
    tokens = generate(model, conditions, PLAIN, [0, 1], prefix=streams[TARGET][:, :, :2])
    expected = teacher_forced(model, conditions, tokens, 1.0)
    causal = teacher_forced(setting(pattern)[0], conditions, tokens, 1.0)
    assert (expected - causal).abs().max() > 0.1  # the mask matters
    assert_same_logits(by_token(pattern, recorded, 8 if pattern == "flattened" else 2), expected)


@pytest.mark.parametrize("known", [1, 3, FRAMES - 1])
@pytest.mark.parametrize(("pattern", "conditioning", "bias"), EVERY)
def test_prefill_and_steps_equal_the_full_forward(pattern, conditioning, bias, known, recorded, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 8)
    model, streams, conditions = setting(pattern, conditioning, bias)
    begun = streams[TARGET][:, :, :known]
    tokens = generate(model, conditions, PLAIN, [0, 1], prefix=begun)
    assert torch.equal(tokens[:, :, :known], begun)
    first = 4 * known if pattern == "flattened" else known
    assert len(recorded) == model.layout.target_steps(FRAMES) - first
    assert_same_logits(by_token(pattern, recorded, first), teacher_forced(model, conditions, tokens, 1.0))


@pytest.mark.parametrize(("pattern", "conditioning", "bias"), ONE_EACH)
def test_advancing_in_pieces_equals_at_once(pattern, conditioning, bias):
    model, _, conditions = setting(pattern, conditioning, bias)
    whole = generate(model, conditions, GUIDED, [0, 1])
    decoder = Decoder(model, FRAMES, GUIDED, [0, 1])
    decoder.condition(conditions)
    for frame in (1, 2, 2, 5, 3, FRAMES):  # asking again for what is done is allowed
        assert torch.equal(decoder.advance(frame), whole[:, :, :frame])


@pytest.mark.parametrize(("pattern", "conditioning", "bias"), [*EVERY, ("nonautoregressive", "prefix", "time")])
def test_a_clip_does_not_depend_on_the_batch_it_rides_in(pattern, conditioning, bias, recorded_rows):
    model, _, conditions = setting(pattern, conditioning, bias, batch=3)
    model.double()  # in float32 a draw on the border of two tokens depends on how the processor rounds each batch size
    together = generate(model, conditions, GUIDED, [5, 6, 7])
    logits = torch.stack(recorded_rows)
    for clip, seed in enumerate([5, 6, 7]):
        recorded_rows.clear()
        alone = generate(model, {name: ids[clip : clip + 1] for name, ids in conditions.items()}, GUIDED, [seed])
        assert torch.equal(alone[0], together[clip])
        torch.testing.assert_close(torch.stack(recorded_rows), logits[:, [clip, 3 + clip]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
@pytest.mark.parametrize("pattern", [*PATTERNS, "nonautoregressive"])
def test_top_k_1_is_greedy_and_needs_no_seed(pattern, conditioning):
    model, _, conditions = setting(pattern, conditioning)
    one = generate(model, conditions, SamplingOptions(guidance=3.0, temperature=0.9, top_k=1), [0, 1])
    greedy = generate(model, conditions, SamplingOptions(guidance=3.0, temperature=0.0), [8, 9])
    assert torch.equal(one, greedy)
    best = teacher_forced(model, conditions, greedy, 3.0).argmax(-1)
    assert torch.equal(greedy, best)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_half_precision_cache_loses_no_more_than_half_precision_itself(pattern, recorded):
    exact, _, conditions = setting(pattern)
    model = tiny_model(exact.config).bfloat16()
    tokens = generate(model, conditions, PLAIN, [0, 1])
    expected = teacher_forced(exact, conditions, tokens, 1.0)
    uncached = teacher_forced(model, conditions, tokens, 1.0).float()
    pairs = by_token(pattern, recorded, 0).items()
    lost = torch.stack([logits - expected[:, k, t] for (k, t), logits in pairs]).square().mean().sqrt()
    assert 0 < lost < 1.5 * (uncached - expected).square().mean().sqrt()
    assert lost < 0.05 * expected.std()


# --- conditions that arrive while decoding ----------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_conditions_may_arrive_as_late_as_the_stated_look_ahead(pattern):
    """Frames up to ``t`` need the conditions up to ``t`` + 3 frames (0.04 s of 75 Hz), and K - 1 more when delayed."""
    model = tiny_model(tiny_config(pattern, "aligned", conditions=("instrumental_fine",), look_ahead_s=0.04))
    frames, ahead = 12, 3 + (3 if pattern == "delay" else 0)
    conditions = {"instrumental_fine": tiny_streams(model.layout, frames)["instrumental_fine"]}
    whole = generate(model, conditions, GUIDED, [0, 1])
    decoder = Decoder(model, frames, GUIDED, [0, 1])
    for heard in range(ahead + 1, frames + 1, 2):
        unknown = conditions["instrumental_fine"].clone()
        unknown[:, :, heard:] = NULL if heard % 4 else 0
        decoder.condition({"instrumental_fine": unknown})
        done = decoder.advance(heard - ahead)
        assert torch.equal(done, whole[:, :, : heard - ahead])
    decoder.condition(conditions)
    assert torch.equal(decoder.advance(frames), whole)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_conditions_may_end_before_the_window_does(pattern):
    conditions = ("vocal_semantic", "instrumental_fine", "style")
    model = tiny_model(tiny_config(pattern, "aligned", conditions=conditions, look_ahead_s=0.04, look_behind_s=0.07))
    frames, ahead = 18, 3 + (3 if pattern == "delay" else 0)
    given = {name: tiny_streams(model.layout, frames)[name] for name in conditions}
    whole = generate(model, given, GUIDED, [0, 1])
    decoder = Decoder(model, frames, GUIDED, [0, 1])
    for heard in (9, 12, 12, 15, 18):
        lengths = {"vocal_semantic": heard * 2 // 3, "instrumental_fine": heard, "style": 1}
        decoder.condition({name: ids[:, :, : lengths[name]] for name, ids in given.items()})
        assert torch.equal(decoder.advance(heard - ahead), whole[:, :, : heard - ahead])
        if heard < frames:
            with pytest.raises(ValueError, match="too early for frame"):
                decoder.advance(heard + 1)
    assert torch.equal(decoder.advance(frames), whole)
    with pytest.raises(ValueError, match="reach to frame 18 of a window of 15"):
        Decoder(model, 15, GUIDED, [0, 1]).condition(given)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_frame_just_beyond_the_look_ahead_is_not_heard_and_the_one_before_is(pattern, recorded):
    model = tiny_model(tiny_config(pattern, "aligned", conditions=("instrumental_fine",), look_ahead_s=0.04))
    frames, written = 12, 5
    ahead = 3 + (3 if pattern == "delay" else 0)
    conditions = {"instrumental_fine": tiny_streams(model.layout, frames, 1)["instrumental_fine"]}

    def logits(changed=None):
        ids = conditions["instrumental_fine"].clone()
        if changed is not None:
            ids[:, :, changed] = (ids[:, :, changed] + 1) % 1024
        recorded.clear()
        decoder = Decoder(model, frames, PLAIN, [0])
        decoder.condition({"instrumental_fine": ids})
        decoder.advance(written)
        return torch.stack(recorded)

    undisturbed = logits()
    assert torch.equal(logits(changed=written + ahead), undisturbed)
    assert not torch.equal(logits(changed=written - 1 + ahead), undisturbed)


def test_conditions_in_a_prefix_cannot_change_once_decoding_began():
    model, _, conditions = setting("parallel", "prefix")
    decoder = Decoder(model, FRAMES, PLAIN, [0, 1])
    decoder.condition(conditions)
    decoder.condition(conditions)  # nothing was written yet
    decoder.advance(1)
    with pytest.raises(ValueError, match="cannot change"):
        decoder.condition(conditions)


# --- non-autoregressive -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
def test_filling_equals_one_pass_a_codebook(conditioning, recorded):
    model, _, conditions = setting("nonautoregressive", conditioning)
    tokens = fill(model, conditions, GUIDED, [0, 1], FRAMES)
    expected = teacher_forced(model, conditions, tokens, 3.0)
    assert len(recorded) == 4
    for k, logits in enumerate(recorded):
        torch.testing.assert_close(logits, expected[:, k], atol=2e-5, rtol=2e-5)


def test_filling_keeps_the_known_frames_and_sees_them(recorded):
    model, streams, conditions = setting("nonautoregressive")
    tokens = generate(model, conditions, PLAIN, [0, 1], prefix=streams[TARGET][:, :, :2])
    assert torch.equal(tokens[:, :, :2], streams[TARGET][:, :, :2])
    expected = teacher_forced(model, conditions, tokens, 1.0)[:, :, 2:]  # nothing is drawn for what is known
    torch.testing.assert_close(torch.stack(recorded, 1), expected, atol=1e-5, rtol=1e-5)


# --- what comes out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [*PATTERNS, "nonautoregressive"])
def test_tokens_are_ids_of_the_target_even_at_a_high_temperature(pattern):
    model, _, conditions = setting(pattern, "aligned")
    tokens = generate(model, conditions, SamplingOptions(guidance=3.0, temperature=50.0, top_k=None), [0, 1])
    assert tokens.shape == (2, 4, FRAMES)
    assert tokens.dtype == torch.int64
    assert tokens.min() >= 0
    assert tokens.max() < 1024
    assert tokens.float().std() > 150  # nearly uniform: hundreds of draws spread over the vocabulary


@pytest.mark.parametrize("pattern", [*PATTERNS, "nonautoregressive"])
def test_the_same_seed_draws_the_same_tokens_and_leaves_the_global_generator_alone(pattern):
    model, _, conditions = setting(pattern)
    state = torch.get_rng_state()
    first = generate(model, conditions, GUIDED, [3, 4])
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(generate(model, conditions, GUIDED, [3, 4]), first)
    assert not torch.equal(generate(model, conditions, GUIDED, [5, 6]), first)


def test_guidance_0_hears_nothing_and_1_runs_one_row(recorded):
    model, _, conditions = setting("parallel")
    other = {name: (ids + 1) % 200 for name, ids in conditions.items()}
    deaf = SamplingOptions(guidance=0.0, temperature=1.0)
    assert torch.equal(generate(model, conditions, deaf, [0, 1]), generate(model, other, deaf, [0, 1]))
    decoder = Decoder(model, FRAMES, PLAIN, [0, 1])
    decoder.condition(conditions)
    assert decoder.rows == 1


def test_a_network_without_conditions_writes_as_many_frames_as_it_is_told():
    model = tiny_model(tiny_config("flattened", conditions=()))
    tokens = generate(model, {}, GUIDED, [0, 1], frames=3)
    assert tokens.shape == (2, 4, 3)
    with pytest.raises(ValueError, match="say how many frames"):
        generate(model, {}, GUIDED, [0, 1])


def test_a_window_that_is_wholly_known_comes_back():
    model, streams, conditions = setting("delay")
    assert torch.equal(generate(model, conditions, GUIDED, [0, 1], prefix=streams[TARGET]), streams[TARGET])


def test_the_target_is_as_long_as_its_conditions():
    model = tiny_model(tiny_config())
    assert target_frames(model, {"vocal_semantic": torch.zeros(1, 1, 50)}) == 75
    assert target_frames(model, {"instrumental_fine": torch.zeros(1, 4, 6), "style": torch.zeros(1, 1, 1)}) == 6
    with pytest.raises(ValueError, match="not whole frames"):
        target_frames(model, {"vocal_semantic": torch.zeros(1, 1, 3)})


def test_progress_counts_frames_and_can_cancel():
    model, _, conditions = setting("flattened")
    counted = []
    generate(model, conditions, PLAIN, [0, 1], on_frame=counted.append)
    assert counted == list(range(1, FRAMES + 1))

    def cancel(frame):
        if frame == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, conditions, PLAIN, [0, 1], on_frame=cancel)


def test_requests_that_do_not_fit_are_refused():
    model, streams, conditions = setting("parallel")
    with pytest.raises(ValueError, match="condition 'style' is missing"):
        generate(model, {name: conditions[name] for name in ("vocal_semantic", "instrumental_fine")}, PLAIN, [0, 1])
    with pytest.raises(ValueError, match=r"prefix must be \[2, 4, at most 6\]"):
        generate(model, conditions, PLAIN, [0, 1], prefix=streams[TARGET][:, :2])
    for wrong in (-1, model.layout.target.vocabulary):
        prefix = streams[TARGET][:, :, :2].clone()
        prefix[1, 3, 1] = wrong
        for pattern in ("parallel", "nonautoregressive"):
            other, _, given = setting(pattern)
            with pytest.raises(ValueError, match=rf"prefix must hold ids 0\.\.1023, got {wrong}"):
                generate(other, given, PLAIN, [0, 1], prefix=prefix)
    with pytest.raises(ValueError, match="call condition"):
        Decoder(model, FRAMES, PLAIN, [0, 1]).advance(1)
    decoder = Decoder(model, FRAMES, PLAIN, [0, 1])
    decoder.condition(conditions)
    with pytest.raises(ValueError, match="frame 7 was requested"):
        decoder.advance(FRAMES + 1)
    with pytest.raises(ValueError, match="use fill"):
        Decoder(tiny_model(tiny_config("nonautoregressive")), FRAMES, PLAIN, [0, 1])
    with pytest.raises(ValueError, match="2 clips for 3 seeds"):
        generate(model, conditions, PLAIN, [0, 1, 2])
