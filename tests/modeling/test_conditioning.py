"""Token vectors, dropped conditions, and conditions on the target's clock, against loops."""

import pytest
import torch
from tiny_models import RICH_CONDITIONS, louden, tiny_streams

from hafm_lightning.modeling.conditioning import (
    EMBEDDING_STD,
    AlignedConditions,
    StreamEmbedding,
    drop_at_random,
    drop_conditions,
    null_conditions,
    whole_frames,
)
from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.tokens import BEGIN, EMPTY, INSTRUMENTAL_COARSE, NULL, STREAMS, VOCAL_SEMANTIC

WIDTH = 6


def aligned_layout(conditions, target="instrumental_coarse"):
    return SequenceLayout.of(list(conditions), target, "parallel", "aligned")


# --- token vectors ----------------------------------------------------------------------------------------------


def test_each_codebook_has_its_own_table_and_the_special_id_its_own_vector():
    embedding = StreamEmbedding(INSTRUMENTAL_COARSE, WIDTH, EMPTY)
    ids = torch.randint(1024, (2, 4, 5))
    ids[0, 2, 3] = ids[1, 0, 0] = EMPTY
    vectors = embedding(ids)
    assert vectors.shape == (2, 4, 5, WIDTH)
    for b in range(2):
        for k in range(4):
            for t in range(5):
                token = int(ids[b, k, t])
                expected = embedding.special if token == EMPTY else embedding.weight[k, token]
                assert torch.equal(vectors[b, k, t], expected)


def test_some_codebooks_alone():
    embedding = StreamEmbedding(INSTRUMENTAL_COARSE, WIDTH, EMPTY)
    ids = torch.randint(1024, (2, 4, 5))
    for books in (slice(0, 1), slice(1, 3), slice(3, 4), slice(0, 0)):
        assert torch.equal(embedding(ids[:, books], books), embedding(ids)[:, books])


def test_a_token_of_one_codebook_never_reads_the_table_of_the_next():
    embedding = StreamEmbedding(INSTRUMENTAL_COARSE, WIDTH, EMPTY)
    for poison in (1024, 2000, NULL, BEGIN, -4):
        with pytest.raises(IndexError):
            embedding(torch.full((1, 4, 1), poison))
    with pytest.raises(ValueError, match="NULL or EMPTY"):
        StreamEmbedding(INSTRUMENTAL_COARSE, WIDTH, BEGIN)


def test_the_special_vector_learns_from_its_places_alone():
    embedding = StreamEmbedding(VOCAL_SEMANTIC, WIDTH, NULL)
    embedding(torch.tensor([[[3, NULL, NULL]]])).sum().backward()
    assert embedding.special.grad.tolist() == [2.0] * WIDTH
    touched = embedding.weight.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert touched == [3]  # the row that stands in for a special id during the look-up learns nothing


# --- dropping ---------------------------------------------------------------------------------------------------


def test_dropping_replaces_all_conditions_of_the_marked_clips_at_the_same_length():
    layout = SequenceLayout.of(list(RICH_CONDITIONS), "instrumental_coarse")
    streams = tiny_streams(layout, 6, batch=3)
    kept = {name: ids.clone() for name, ids in streams.items()}
    dropped = drop_conditions(streams, layout.conditions, torch.tensor([True, False, True]))
    for name in RICH_CONDITIONS:
        assert dropped[name].shape == streams[name].shape
        assert dropped[name].dtype == torch.int64
        assert (dropped[name][[0, 2]] == NULL).all()
        assert torch.equal(dropped[name][1], streams[name][1])
    assert torch.equal(dropped["instrumental_coarse"], streams["instrumental_coarse"])
    assert all(torch.equal(streams[name], kept[name]) for name in streams)  # the batch itself is untouched
    everything = null_conditions(streams, layout.conditions)
    assert all((everything[name] == NULL).all() for name in RICH_CONDITIONS)


def test_a_control_is_dropped_with_the_others_and_by_itself():
    layout = SequenceLayout.of(list(RICH_CONDITIONS), "instrumental_coarse")
    streams = tiny_streams(layout, 6, batch=2000)
    dropped = drop_at_random(streams, layout.conditions, 0.2)
    vocal, codes, style = ((dropped[name] == NULL).flatten(1).all(1) for name in RICH_CONDITIONS)
    assert torch.equal(vocal, codes)
    assert not (vocal & ~style).any()
    assert float(vocal.double().mean()) == pytest.approx(0.2, abs=0.03)
    assert float((style & ~vocal).double().mean()) == pytest.approx(0.8 * 0.2, abs=0.03)
    untouched = ~style
    assert torch.equal(dropped["style"][untouched], streams["style"][untouched])
    assert torch.equal(dropped["instrumental_coarse"], streams["instrumental_coarse"])


def test_without_controls_one_number_a_clip_is_drawn():
    """So that runs without a style see the same batches as before there were styles."""
    layout = SequenceLayout.of(["vocal_semantic"], "instrumental_coarse")
    streams = tiny_streams(layout, 6, batch=64)
    torch.manual_seed(4)
    dropped = drop_at_random(streams, layout.conditions, 0.3)
    after = torch.rand(1)
    torch.manual_seed(4)
    expected = drop_conditions(streams, layout.conditions, torch.rand(64) < 0.3)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(dropped["vocal_semantic"], expected["vocal_semantic"])


# --- aligned conditions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ahead_s", "behind_s"), [(0.04, 0.03), (0.0, 0.0), (0.0, 0.1), (0.2, 0.0)])
def test_aligned_conditions_equal_the_slow_computation(ahead_s, behind_s):
    layout = aligned_layout(["vocal_semantic", "instrumental_fine", "style"])
    module = AlignedConditions(layout, WIDTH, ahead_s, behind_s)
    louden(module)
    frames = 9
    vectors = [torch.randn(2, length, WIDTH) for length in (6, 9, 1)]
    found = module(vectors, frames)
    ahead, behind = int(ahead_s * 75 + 1e-9), int(behind_s * 75 + 1e-9)
    weight, bias = module.mix.weight, module.mix.bias
    assert weight.shape == (WIDTH, 1, behind + 1 + ahead)
    sounding = [0, 1, 1, 2, 3, 3, 4, 5, 5]  # 50 Hz frame under the middle of each 75 Hz frame
    clock = torch.stack([vectors[0][:, sounding[t]] + vectors[1][:, t] for t in range(frames)], dim=1)
    for t in range(frames):
        expected = clock[:, t] + bias + vectors[2][:, 0]
        for offset in range(-behind, ahead + 1):
            if 0 <= t + offset < frames:
                expected = expected + weight[:, 0, behind + offset] * clock[:, t + offset]
        torch.testing.assert_close(found[:, t], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("look_ahead_s", [0.0, 0.1, 0.2, 0.3])
def test_a_changed_frame_is_heard_from_the_look_ahead_to_the_look_behind(look_ahead_s):
    module = AlignedConditions(aligned_layout(["instrumental_fine"]), WIDTH, look_ahead_s, 0.1)
    louden(module)
    vectors = torch.randn(1, 60, WIDTH)
    changed = vectors.clone()
    changed[:, 30] += 1
    moved = (module([changed], 60) - module([vectors], 60)).abs().amax(-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == list(range(30 - module.ahead, 30 + module.behind + 1))
    assert module.ahead / 75 <= look_ahead_s < (module.ahead + 1) / 75
    assert module.behind == 7


def test_stated_times_are_never_exceeded():
    """0.1 s of 75 Hz are 7.5 frames: rounding to 8 would hear 6.7 ms more of the vocal than was stated."""
    for stream in STREAMS.values():
        for hundredths in range(101):
            frames = whole_frames(hundredths / 100, stream)
            assert frames == hundredths * stream.rate_hz // 100
    with pytest.raises(ValueError, match="0 or more"):
        AlignedConditions(aligned_layout(["vocal_semantic"]), WIDTH, -0.1)


def test_conditions_of_the_whole_clip_alone_are_added_to_every_frame():
    module = AlignedConditions(aligned_layout(["style"]), WIDTH)
    vectors = torch.randn(3, 1, WIDTH)
    torch.testing.assert_close(module([vectors], 4), vectors.expand(3, 4, WIDTH))


def test_a_depth_wise_convolution_mixes_time_not_channels():
    module = AlignedConditions(aligned_layout(["instrumental_fine"]), WIDTH)
    louden(module)
    vectors = torch.randn(1, 20, WIDTH)
    changed = vectors.clone()
    changed[..., 2] += 1
    moved = (module([changed], 20) - module([vectors], 20)).abs().amax(1)[0] > 0
    assert moved.tolist() == [channel == 2 for channel in range(WIDTH)]


def test_what_is_added_to_every_frame_alike_does_not_drown_the_tokens():
    torch.manual_seed(0)
    module = AlignedConditions(aligned_layout(["instrumental_fine"]), 64)
    vectors = torch.randn(2, 150, 64) * EMBEDDING_STD
    heard = module([vectors], 150)
    everywhere = heard.mean((0, 1))
    assert everywhere.std() < 0.2 * EMBEDDING_STD
    assert heard.std() < 2 * EMBEDDING_STD
