"""Token scores against loops over every token."""

import math

import pytest
import torch
from tiny_models import tiny_batch

from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.modeling.token_scores import TokenScores, other_clips, summarise, token_cross_entropy


def slow_scores(logits, targets):
    """(codebook, cross-entropy, rank) of every token, in Python floats."""
    rows = []
    for b in range(targets.shape[0]):
        for k in range(targets.shape[1]):
            for t in range(targets.shape[2]):
                values = logits[b, k, t].tolist()
                true = int(targets[b, k, t])
                order = sorted(range(len(values)), key=lambda i: (-values[i], i))
                top = max(values)
                total = top + math.log(math.fsum(math.exp(value - top) for value in values))
                rows.append((k, total - values[true], order.index(true)))
    return rows


@pytest.fixture
def scored():
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(2, 3, 5, 30, generator=generator)
    return logits, torch.randint(30, (2, 3, 5), generator=generator)


def test_cross_entropy_and_rank_of_every_token(scored):
    logits, targets = scored
    scores = TokenScores.of(logits, targets)
    rows = slow_scores(logits, targets)
    assert scores.cross_entropy.flatten().tolist() == pytest.approx([ce for _, ce, _ in rows], abs=1e-5)
    assert scores.rank.flatten().tolist() == [rank for _, _, rank in rows]


def test_means_in_all_and_for_each_codebook(scored):
    logits, targets = scored
    found = summarise(TokenScores.of(logits, targets), first_codebook=0, total=3)
    rows = slow_scores(logits, targets)
    for suffix, chosen in [("", rows), *((f"_q{k}", [row for row in rows if row[0] == k]) for k in range(3))]:
        assert float(found[f"loss{suffix}"]) == pytest.approx(sum(ce for _, ce, _ in chosen) / len(chosen), abs=1e-5)
        for name, within in (("accuracy", 1), ("accuracy_top10", 10)):
            share = sum(rank < within for _, _, rank in chosen) / len(chosen)
            assert float(found[f"{name}{suffix}"]) == pytest.approx(share)
    assert len(found) == 12


def test_one_codebook_of_several_is_named_by_its_number(scored):
    logits, targets = scored
    found = summarise(TokenScores.of(logits[:, :1], targets[:, :1]), first_codebook=2, total=3)
    assert set(found) == {"loss", "accuracy", "accuracy_top10", "loss_q2", "accuracy_q2", "accuracy_top10_q2"}
    alone = summarise(TokenScores.of(logits[:, :1], targets[:, :1]), first_codebook=0, total=1)
    assert set(alone) == {"loss", "accuracy", "accuracy_top10"}


def test_ties_do_not_flatter_the_accuracy():
    """In half precision many logits are equal: the true token ranks first only where argmax would name it."""
    logits = torch.randn(1, 1, 4000, 50).mul(2).bfloat16()
    targets = torch.randint(50, (1, 1, 4000))
    scores = TokenScores.of(logits, targets)
    assert torch.equal(scores.rank == 0, logits.argmax(-1) == targets)
    flat = TokenScores.of(torch.zeros(1, 1, 4000, 50), targets)
    assert float((flat.rank == 0).double().mean()) == pytest.approx(1 / 50, abs=0.01)


def test_cross_entropy_is_float32_whatever_the_logits(scored):
    logits, targets = scored
    half = token_cross_entropy(logits.bfloat16(), targets)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, token_cross_entropy(logits.bfloat16().float(), targets))
    transposed = logits.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    torch.testing.assert_close(token_cross_entropy(transposed, targets), token_cross_entropy(logits, targets))


def test_other_clips_come_from_other_songs():
    layout = SequenceLayout.of(["vocal_semantic", "instrumental_semantic"], "instrumental_coarse")
    batch = tiny_batch(layout, 6, batch=5, songs=2)  # songs 0 1 0 1 0
    names = ["vocal_semantic", "instrumental_semantic"]
    streams = other_clips(batch, names)
    songs = [clip.split("@")[0] for clip in batch.clip_ids]
    for index in range(5):
        sources = [
            source
            for source in range(5)
            if all(torch.equal(streams[name][index], batch[name][source]) for name in names)
        ]
        assert len(sources) == 1  # one and the same clip for all conditions
        assert songs[sources[0]] != songs[index]
    assert torch.equal(streams["instrumental_coarse"], batch["instrumental_coarse"])
    assert other_clips(tiny_batch(layout, 6, batch=3, songs=1), names) is None
