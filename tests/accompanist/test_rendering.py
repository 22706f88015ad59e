"""Long sound from stretches: the same as in one go where decoding allows it, and never louder or softer at a joint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hafm_lightning.accompanist.rendering import Renderer, crossfade, render

HOP, RATE_HZ = 320, 75


class _CausalDecoder:
    """Each frame's sound is its id as a level plus a ringing that lasts two frames: what came before matters."""

    identity: Any = SimpleNamespace(hop=HOP, rate_hz=RATE_HZ, sample_rate_hz=HOP * RATE_HZ)

    def decode(self, codes: Tensor) -> Tensor:
        level = codes[:, 0].double() / 1000
        ringing = level + 0.5 * torch.nn.functional.pad(level, (2, 0))[:, :-2]
        return ringing.repeat_interleave(HOP, dim=1).float()


class _NoiseDecoder:
    """Sound of constant level whose phases are new with every call, like Griffin-Lim's."""

    identity = _CausalDecoder.identity

    def __init__(self) -> None:
        self._random = torch.Generator().manual_seed(0)

    def decode(self, codes: Tensor) -> Tensor:
        return 0.1 * torch.randn(1, codes.shape[-1] * HOP, generator=self._random)


def codes(frames: int) -> Tensor:
    return torch.randint(0, 1000, (8, frames), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("frames", [1, 5, 149, 150, 151, 700])
def test_stretches_of_a_causal_decoder_equal_the_whole(frames: int) -> None:
    decoder = _CausalDecoder()
    whole = decoder.decode(codes(frames)[None])[0].numpy()
    np.testing.assert_allclose(render(decoder, codes(frames), stretch_s=2.0), whole, atol=1e-6)


def test_pushing_frame_by_frame_gives_the_same_sound_later() -> None:
    decoder, ids = _CausalDecoder(), codes(60)
    renderer = Renderer(decoder)
    parts = [renderer.push(ids[:, n : n + 1]) for n in range(59)]
    assert sum(len(part) for part in parts) == (59 - renderer.fade_frames) * HOP
    parts.append(renderer.push(ids[:, 59:], last=True))
    np.testing.assert_allclose(np.concatenate(parts), decoder.decode(ids[None])[0].numpy(), atol=1e-6)
    assert len(renderer.push(ids[:, :0], last=True)) == 0


def test_loudness_at_the_joints_is_that_of_everywhere_else() -> None:
    sound = render(_NoiseDecoder(), codes(75 * 20), stretch_s=1.0)
    joints = np.arange(1, 20) * RATE_HZ * HOP
    at_joints = np.concatenate([sound[joint - 6 * HOP : joint] for joint in joints])  # the fades
    elsewhere = np.concatenate([sound[joint - 30 * HOP : joint - 10 * HOP] for joint in joints])
    difference_db = 20 * np.log10(np.sqrt(np.mean(at_joints**2) / np.mean(elsewhere**2)))
    assert abs(difference_db) < 0.3


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_crossfade_keeps_the_level_for_every_correlation(share: float) -> None:
    noise = np.random.default_rng(0).standard_normal((2, 100_000)).astype(np.float32)
    old, new = noise[0], np.float32(share) * noise[0] + np.float32(np.sqrt(1 - share**2)) * noise[1]
    faded = crossfade(old, new)
    for part in np.split(faded, 10):
        assert np.sqrt(np.mean(part**2)) == pytest.approx(1.0, abs=0.03)
    assert np.corrcoef(faded[:2000], old[:2000])[0, 1] > 0.99
    assert np.corrcoef(faded[-2000:], new[-2000:])[0, 1] > 0.99


def test_silence_fades_to_silence() -> None:
    assert not crossfade(np.zeros(10, np.float32), np.zeros(10, np.float32)).any()
