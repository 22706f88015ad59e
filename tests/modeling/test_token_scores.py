"""Token scores against loops over every token."""

import math

import pytest
import torch
from tiny_models import tiny_batch, tiny_config, tiny_model

from hafm_lightning.modeling.token_scores import (
    TokenScores,
    has_other_song,
    other_song,
    other_song_clips,
    paired,
    score,
    summarise,
    token_cross_entropy,
    without_conditions,
)
from hafm_lightning.tokens import NULL

SET = ["b@0", "a@0", "a@5", "b@5", "a@10"]


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


def test_the_other_clip_is_of_the_next_song_at_the_same_place():
    pairs = [SET[i] for i in other_song_clips(SET)]
    assert pairs == ["a@0", "b@0", "b@5", "a@5", "b@0"]


def test_one_song_alone_has_no_other():
    with pytest.raises(ValueError, match="at least 2 songs"):
        other_song_clips(["a@0", "a@5"])


@pytest.fixture
def model():
    return tiny_model(tiny_config("delay", "aligned"))


def test_the_conditions_of_another_song_are_those_of_the_pair(model):
    names = [stream.name for stream in model.layout.conditions]
    batch = tiny_batch(model.layout, 6, batch=5, songs=2)
    swapped = other_song(batch, model.layout.conditions[:2])
    others = other_song_clips(batch.clip_ids)
    for name, ids in swapped.items():
        assert torch.equal(ids, batch[name][others] if name in names[:2] else batch[name])
    assert has_other_song(batch)
    one_song = tiny_batch(model.layout, 6, batch=3, songs=1)
    assert not has_other_song(one_song)
    with pytest.raises(ValueError, match="at least 2 songs"):
        other_song(one_song, model.layout.conditions)


def test_pairs_stay_together_whatever_is_taken_of_a_set(model):
    """The scores of a clip do not depend on the clips beside it: a part of a set of pairs gives the whole's scores."""
    clips = tiny_batch(model.layout, 6, batch=5, songs=2)
    whole = other_song(clips, model.layout.conditions)
    part = paired(clips).rows([3, 0]).to("cpu")
    assert part.clip_ids == [clips.clip_ids[3], clips.clip_ids[0]]
    assert has_other_song(paired(clips).rows([1])), "one clip alone"
    for name, ids in other_song(part, model.layout.conditions).items():
        assert torch.equal(ids, whole[name][[3, 0]])


def test_a_network_is_scored_clip_by_clip(model):
    batch = tiny_batch(model.layout, 6, batch=3)
    null = without_conditions(batch, model.layout.conditions)
    assert all((null[stream.name] == NULL).all() for stream in model.layout.conditions)
    target = model.layout.target.name
    assert torch.equal(null[target], batch[target])
    with torch.no_grad():
        for streams in (None, null):
            found = score(model, batch, streams)
            given = batch.streams if streams is None else streams
            for clip in range(3):
                logits = model({name: ids[clip : clip + 1] for name, ids in given.items()})
                rows = slow_scores(logits, batch[target][clip : clip + 1])
                mean = sum(ce for _, ce, _ in rows) / len(rows)
                assert float(found.clip_losses[clip]) == pytest.approx(mean, abs=1e-4)
