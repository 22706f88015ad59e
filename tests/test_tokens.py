"""Rates, durations and ids of the alphabet, and batches of tokens."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hafm_lightning.tokens import (
    BEGIN,
    CLIP_DURATION_S,
    EMPTY,
    FRAME_GRID_S,
    INSTRUMENTAL_COARSE,
    INSTRUMENTAL_FINE,
    INSTRUMENTAL_SEMANTIC,
    NULL,
    SPECIAL_TOKENS,
    STREAMS,
    STYLE,
    TICK_RATE_HZ,
    VOCAL_ACOUSTIC,
    VOCAL_SEMANTIC,
    TokenBatch,
    TokenStream,
    check_ids,
    join_codes,
    nearest_frames,
    split_codes,
    stream_named,
)

TIMED = [stream for stream in STREAMS.values() if stream.rate_hz]


def test_the_papers_streams():
    described = {name: (s.rate_hz, s.codebooks, s.vocabulary) for name, s in STREAMS.items()}
    assert described == {
        "vocal_semantic": (50, 1, 500),
        "instrumental_semantic": (50, 1, 500),
        "vocal_acoustic": (75, 8, 1024),
        "instrumental_coarse": (75, 4, 1024),
        "instrumental_fine": (75, 4, 1024),
        "style": (0, 1, 256),
    }


def test_a_clip_is_500_semantic_and_750_acoustic_frames():
    assert VOCAL_SEMANTIC.frames(CLIP_DURATION_S) == 500
    assert INSTRUMENTAL_COARSE.frames(CLIP_DURATION_S) == 750
    assert STYLE.frames(CLIP_DURATION_S) == 1


def test_special_tokens_are_distinct_and_in_no_vocabulary():
    assert sorted(SPECIAL_TOKENS.values()) == [EMPTY, NULL, BEGIN] == [-3, -2, -1]


@settings(max_examples=50, deadline=None)
@given(units=st.integers(1, 20_000))
def test_durations_on_the_grid_are_whole_frames_of_every_stream(units):
    duration_s = units * FRAME_GRID_S
    for stream in TIMED:
        frames = stream.frames(duration_s)
        assert frames == Fraction(units, 25) * stream.rate_hz
        assert stream.frames(stream.duration_s(frames)) == frames


@pytest.mark.parametrize("duration_s", [0.0, -1.0, 0.01, 10.005, math.nan, math.inf])
def test_durations_that_are_not_whole_frames_are_refused(duration_s):
    with pytest.raises(ValueError, match=r"positive|multiple of 0.04"):
        INSTRUMENTAL_COARSE.frames(duration_s)


def test_a_clip_level_stream_has_no_duration():
    with pytest.raises(ValueError, match="whole clip"):
        STYLE.duration_s(1)


@pytest.mark.parametrize(
    ("values", "named"),
    [((7, 1, 10), "does not divide"), ((-50, 1, 10), "rate"), ((50, 0, 10), "codebook"), ((50, 1, 1), "2 ids")],
)
def test_impossible_streams_are_refused(values, named):
    with pytest.raises(ValueError, match=named):
        TokenStream("odd", *values)


def test_frames_start_on_whole_ticks():
    for stream in TIMED:
        assert stream.ticks_per_frame * stream.rate_hz == TICK_RATE_HZ
    assert STYLE.ticks_per_frame == 0


def test_an_unknown_stream_is_refused_with_the_known_ones():
    assert stream_named("style") is STYLE
    with pytest.raises(ValueError, match=r"'vocals'.*vocal_semantic"):
        stream_named("vocals")


@pytest.mark.parametrize("target", TIMED, ids=lambda s: s.name)
@pytest.mark.parametrize("source", TIMED, ids=lambda s: s.name)
def test_the_nearest_frame_sounds_at_the_middle_of_the_targets(source, target):
    frames = target.frames(0.4)
    for frame, found in enumerate(nearest_frames(source, target, frames).tolist()):
        middle = Fraction(2 * frame + 1, 2 * target.rate_hz)
        assert Fraction(found, source.rate_hz) <= middle < Fraction(found + 1, source.rate_hz)
        assert found < source.frames(0.4)


def test_a_clip_level_stream_sounds_everywhere():
    assert nearest_frames(STYLE, INSTRUMENTAL_COARSE, 5).tolist() == [0] * 5


def test_codes_split_and_join():
    codes = torch.randint(1024, (2, 8, 6))
    coarse, fine = split_codes(codes)
    assert torch.equal(coarse, codes[:, :4])
    assert torch.equal(fine, codes[:, 4:])
    assert torch.equal(join_codes(coarse, fine), codes)
    with pytest.raises(ValueError, match="expected 8 codebooks"):
        split_codes(codes[:, :4])


def test_ids_are_checked_and_the_place_is_named():
    check_ids(VOCAL_SEMANTIC, torch.tensor([[[0, 499]]]), "shard 3")
    for wrong, message in [
        (torch.tensor([[[0, 500]]]), r"shard 3.*0\.\.500.*prepare"),
        (torch.tensor([[[NULL, 5]]]), r"shard 3.*-2\.\.5"),
        (torch.zeros(1, 2, 4, dtype=torch.int64), r"\[\.\.\., 1, T\]"),
        (torch.zeros(4, dtype=torch.int64), r"\[\.\.\., 1, T\]"),
        (torch.zeros(1, 1, 0, dtype=torch.int64), "empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_ids(VOCAL_SEMANTIC, wrong, "shard 3")


def batch(clips, first=0):
    ids = torch.arange(first, first + clips)[:, None, None]
    return TokenBatch(
        {"style": ids, "vocal_semantic": ids.expand(-1, 1, 4), "instrumental_fine": ids.expand(-1, 4, 6)},
        [f"song@{first + i}.00" for i in range(clips)],
    )


def test_a_batch_knows_its_streams_clips_and_duration():
    whole = batch(3)
    assert len(whole) == 3
    assert whole["instrumental_fine"].shape == (3, 4, 6)
    assert whole.duration_s == pytest.approx(0.08)  # the first stream has no rate
    with pytest.raises(ValueError, match=r"no stream 'vocal_acoustic'.*style, vocal_semantic"):
        whole["vocal_acoustic"]
    with pytest.raises(ValueError, match="no stream with a frame rate"):
        TokenBatch({"style": whole["style"]}, whole.clip_ids).duration_s  # noqa: B018


def test_rows_and_concatenation_are_inverse():
    whole = batch(5)
    parts = [whole.rows([0, 1]), whole.rows([2]), whole.rows(range(3, 5))]
    again = TokenBatch.concatenate(iter(parts))
    assert again.clip_ids == whole.clip_ids
    assert all(torch.equal(again[name], whole[name]) for name in whole.streams)
    assert whole.rows([4, 0]).clip_ids == ["song@4.00", "song@0.00"]
    assert whole.rows([4, 0])["style"].flatten().tolist() == [4, 0]
    with pytest.raises(ValueError, match="nothing to concatenate"):
        TokenBatch.concatenate([])


def test_moving_a_batch_keeps_names_and_ids():
    moved = batch(2).to("meta")
    assert moved.clip_ids == ["song@0.00", "song@1.00"]
    assert {ids.device.type for ids in moved.streams.values()} == {"meta"}


def test_a_batch_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"B=2.*\(3, 1, 4\)"):
        TokenBatch({"vocal_semantic": torch.zeros(3, 1, 4)}, ["a", "b"])
    with pytest.raises(ValueError, match="'vocal_acoustic'"):
        TokenBatch({VOCAL_ACOUSTIC.name: torch.zeros(8, 6)}, ["a"])
    assert INSTRUMENTAL_SEMANTIC != INSTRUMENTAL_FINE
