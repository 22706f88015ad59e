"""The order of clips: a pure function that neither repeats nor loses one."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafm_lightning.data_modules.sampling import (
    EvaluationOrder,
    TrainingOrder,
    crop_choices,
    crop_starts,
    random_words,
    shuffled,
)
from hafm_lightning.errors import RequestError


def clips_of(order):
    return [request.clips.tolist() for request in order]


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


def philox_reference(counter, key):
    """Philox 4x64-10 of Salmon et al. (2011), in Python integers: four words of one counter."""
    multipliers, weyl, mask = (0xD2E7470EE14C6C93, 0xCA5A826395121157), (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B), 2**64
    c, k = list(counter), list(key)
    for _ in range(10):
        low, high = c[0] * multipliers[0], c[2] * multipliers[1]
        c = [(high >> 64) ^ c[1] ^ k[0], high % mask, (low >> 64) ^ c[3] ^ k[1], low % mask]
        k = [(k[0] + weyl[0]) % mask, (k[1] + weyl[1]) % mask]
    return c


def test_random_words_are_philox_by_definition():
    """Guards a run in progress against an upgrade of numpy: the words must never change."""
    seed, epoch, purpose = 12345, 7, 1
    # The generator raises its counter before it makes a block of four words.
    expected = [
        *philox_reference((1, 0, purpose, epoch), (seed, 0)),
        *philox_reference((2, 0, purpose, epoch), (seed, 0)),
    ]
    assert random_words(seed, epoch, purpose, 8).tolist() == expected


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 5), st.booleans(), st.integers(0, 3))
def test_training_deals_each_clip_at_most_once(clips, batch_size, world, drop_last, epoch):
    orders = [
        TrainingOrder(clips, batch_size, seed=3, rank=rank, world=world, drop_last=drop_last) for rank in range(world)
    ]
    for order in orders:
        order.set_epoch(epoch)
    dealt = [clips_of(order) for order in orders]
    assert {len(batches) for batches in dealt} == {len(orders[0])}, "every process must make the same number of steps"
    seen = flat(flat(dealt))
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(range(clips))
    rest = clips % (batch_size * world)
    kept = clips - rest if drop_last or rest < world else clips
    assert len(seen) == kept
    if drop_last:
        assert all(len(batch) == batch_size for batches in dealt for batch in batches)
    assert all(batch for batches in dealt for batch in batches)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_evaluation_deals_each_clip_exactly_once(clips, batch_size, world):
    if clips < world:
        with pytest.raises(RequestError, match="cannot be shared"):
            EvaluationOrder(clips, batch_size, world=world)
        return
    orders = [EvaluationOrder(clips, batch_size, rank=rank, world=world) for rank in range(world)]
    dealt = [clips_of(order) for order in orders]
    assert [len(batches) for batches in dealt] == [len(order) for order in orders]
    assert all(batches for batches in dealt), "a process without a batch would leave the others waiting"
    seen = sorted(flat(flat(dealt)))
    assert seen == list(range(clips))
    sizes = {len(batch) for batches in dealt for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_evaluation_batches_hold_the_same_clips_and_pairs_on_any_number_of_processes():
    others = [(3 * clip + 7) % 50 for clip in range(50)]
    starts = crop_starts(50, 9, seed=0, epoch=0)

    def dealt(rank, world):
        order = EvaluationOrder(50, 6, rank=rank, world=world, choices=9, others=others)
        for request in order:
            assert request.other.clips.tolist() == [others[clip] for clip in request.clips]
            assert request.other.starts.tolist() == starts[request.other.clips].tolist()
            yield tuple(request.clips)

    alone = set(dealt(0, 1))
    assert {batch for rank in range(4) for batch in dealt(rank, 4)} == alone
    assert all(min(np.diff(batch)) >= 9 for batch in alone), "neighbours in the split are clips of one song"


def test_a_global_batch_is_the_same_on_any_number_of_processes():
    alone = TrainingOrder(97, 12, seed=5)
    alone.set_epoch(2)
    quarters = [TrainingOrder(97, 3, seed=5, rank=rank, world=4) for rank in range(4)]
    for order in quarters:
        order.set_epoch(2)
    together = [sorted(flat(parts)) for parts in zip(*map(clips_of, quarters), strict=True)]
    assert together == [sorted(batch) for batch in clips_of(alone)]


def test_epochs_and_seeds_shuffle_differently_and_repeat_exactly():
    permutations = {(seed, epoch): tuple(shuffled(40, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(set(permutations.values())) == 9
    assert all(sorted(order) == list(range(40)) for order in permutations.values())
    order = TrainingOrder(40, 4, seed=1)
    order.set_epoch(2)
    first = clips_of(order)
    assert clips_of(order) == first
    assert flat(first) == list(permutations[1, 2])
    assert clips_of(TrainingOrder(6, 2, shuffle=False)) == [[0, 1], [2, 3], [4, 5]]


def test_shuffles_are_fair():
    """Each clip is equally likely at each place: chi-square over 4000 epochs of 6 clips, 25 degrees of freedom."""
    counts = np.zeros((6, 6))
    for epoch in range(4000):
        counts[np.arange(6), shuffled(6, 0, epoch)] += 1
    expected = 4000 / 6
    assert ((counts - expected) ** 2 / expected).sum() < 60  # P = 1e-4


@given(st.integers(0, 9), st.integers(0, 4))
def test_a_resumed_epoch_continues_and_the_next_one_is_whole(batches, epoch):
    order, resumed = TrainingOrder(40, 4, seed=9, choices=5), TrainingOrder(40, 4, seed=9, choices=5)
    order.set_epoch(epoch)
    resumed.resume(epoch, batches)
    assert len(resumed) == len(order) == 10
    assert clips_of(resumed) == clips_of(order)[batches:]
    assert clips_of(resumed) == clips_of(order)[batches:], "Lightning may ask for the iterator twice"
    resumed.set_epoch(epoch)
    assert clips_of(resumed) == clips_of(order)[batches:]
    for sampler in (order, resumed):
        sampler.set_epoch(epoch + 1)
    assert clips_of(resumed) == clips_of(order)
    for sampler in (order, resumed):
        sampler.set_epoch(epoch)
    assert clips_of(resumed) == clips_of(order), "the skip must not come back"


def test_crops_depend_on_clip_and_epoch_and_cover_all_places():
    starts = crop_starts(5000, 176, seed=0, epoch=1)
    assert set(starts.tolist()) == set(range(176))
    assert not np.array_equal(starts, crop_starts(5000, 176, seed=0, epoch=2))
    np.testing.assert_array_equal(starts[:50], crop_starts(50, 176, seed=0, epoch=1))
    assert crop_starts(4, 1, seed=0, epoch=1).tolist() == [0, 0, 0, 0]


def test_crop_choices_count_the_grid():
    assert crop_choices(10.0, None) == 1
    assert crop_choices(10.0, 10.0) == 1
    assert crop_choices(10.0, 3.0) == 176  # starts 0.00, 0.04, ..., 7.00 s
    assert crop_choices(10.0, 0.04) == 250
    for crop_s, mend in ((3.01, "multiple of 0.04"), (-1.0, "multiple of 0.04"), (0.0, "multiple"), (12.0, "shorter")):
        with pytest.raises(RequestError, match=mend):
            crop_choices(10.0, crop_s)


def test_impossible_orders_are_refused():
    for arguments in ({"clips": 0, "batch_size": 1}, {"clips": 3, "batch_size": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            TrainingOrder(**arguments)
    with pytest.raises(ValueError, match="rank"):
        TrainingOrder(3, 1, rank=2, world=2)
