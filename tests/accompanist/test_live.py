"""Live accompaniment: as long as the vocal, never later than stated, and deaf to what has not been sung yet."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny_band import TinyBand, sing

from hafm_lightning import Accompanist
from hafm_lightning.accompanist import LiveOptions
from hafm_lightning.accompanist.live import _VocalBuffer
from hafm_lightning.audio import Audio, Samples
from hafm_lightning.errors import RequestError

LIVE = LiveOptions(hop_s=0.2, listen_s=0.4, context_s=0.2)


@pytest.fixture(scope="module")
def band(live_band: TinyBand) -> Accompanist:
    return Accompanist.from_checkpoints(**live_band.files(), device="cpu", precision="fp32")


def blocks(vocal: Audio, length: int) -> Iterator[Audio]:
    for start in range(0, vocal.samples.shape[1], length):
        yield Audio(vocal.samples[:, start : start + length], vocal.rate_hz)


def played(band: Accompanist, vocal: Audio, length: int, seed: int = 1) -> Samples:
    pieces = list(band.stream(blocks(vocal, length), seed=seed, live=LIVE))
    assert all(piece.rate_hz == 24000 and piece.channels == 1 for piece in pieces)
    return np.concatenate([piece.samples[0] for piece in pieces])


@pytest.mark.parametrize(("duration_s", "rate_hz"), [(0.01, 44100), (0.77, 44100), (0.5, 48000)])
def test_it_plays_exactly_as_long_as_the_vocal(band: Accompanist, duration_s: float, rate_hz: int) -> None:
    vocal = sing(duration_s, rate_hz, channels=2)
    assert len(played(band, vocal, 1000)) == round(vocal.samples.shape[1] * 24000 / rate_hz)


def test_the_size_of_the_blocks_changes_nothing(band: Accompanist) -> None:
    vocal = sing(0.9, 44100)
    np.testing.assert_array_equal(played(band, vocal, 333), played(band, vocal, 100_000))


def test_sound_depends_on_nothing_sung_after_its_end_and_the_look_ahead(band: Accompanist) -> None:
    vocal, rate_hz = sing(1.6, 24000), 24000
    ahead_s = band.live_session(live=LIVE).look_ahead_s
    changed_from = round(1.2 * rate_hz)
    other = vocal.samples.copy()
    other[:, changed_from:] = sing(1.6, rate_hz, seed=2).samples[:, changed_from:]
    one, two = (played(band, Audio(samples, rate_hz), 2400) for samples in (vocal.samples, other))
    safe = round((1.2 - ahead_s) * rate_hz)
    assert safe > 0.4 * rate_hz
    np.testing.assert_array_equal(one[:safe], two[:safe])
    assert (one[changed_from:] != two[changed_from:]).any()  # but it does listen


def test_sound_is_given_out_no_later_than_the_stated_look_ahead(band: Accompanist) -> None:
    session = band.live_session(seed=1, live=LIVE)
    given_s = 0.0
    for number, block in enumerate(blocks(sing(2.0, 24000), 480)):
        given_s += sum(piece.duration_s for piece in session.push(block))
        assert given_s >= (number + 1) * 0.02 - session.look_ahead_s - 1e-6
    assert given_s > 1.0


@pytest.mark.parametrize("rate_hz", [24000, 44100])
def test_what_a_tokenizer_does_not_hear_need_not_be_tokenized(
    band: Accompanist, rate_hz: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, found = LiveOptions(hop_s=0.2, listen_s=2.0, context_s=0.2), []
    for context in ("stated", "unknown"):
        if context == "unknown":
            monkeypatch.setattr(band.tokenizers.semantic, "context_s", None)
        session = band.live_session(seed=1, live=live)
        for block in blocks(sing(1.6, rate_hz), 4000):
            list(session.push(block))
        found.append(session._streams["vocal_semantic"].kept)
    assert found[0].shape[1] > 60
    assert len(found[0].unique()) > 5
    assert torch.equal(found[0], found[1])


def test_a_session_keeps_only_the_newest_sound() -> None:
    vocal = _VocalBuffer(units=25)  # 1 s
    for block in blocks(sing(20.0, 16000), 1600):
        vocal.add(block)
        assert len(vocal._newest) <= 1.2 * 16000
    assert vocal.end_unit == 500


def test_stages_that_read_the_whole_vocal_are_refused(paper_band: TinyBand) -> None:
    band = Accompanist.from_checkpoints(**paper_band.files(), device="cpu", precision="fp32")
    with pytest.raises(RequestError, match="aligned"):
        band.live_session()


def test_blocks_that_do_not_fit_are_refused(band: Accompanist) -> None:
    session = band.live_session(live=LIVE)
    list(session.push(sing(0.1, 44100)))
    with pytest.raises(RequestError, match="48000"):
        list(session.push(sing(0.1, 48000)))
    with pytest.raises(RequestError, match="NaN"):
        list(session.push(Audio(np.full((1, 10), np.nan, np.float32), 44100)))


def test_an_empty_performance_ends_quietly(band: Accompanist) -> None:
    assert list(band.stream([])) == []
