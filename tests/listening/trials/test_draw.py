"""Trials are balanced for every number of systems, clips and trials, and follow from the seed."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.trials.draw import ClipName, draw_trials


def names(count: int) -> list[ClipName]:
    return [ClipName(f"song {index // 2}@{index}", f"song {index // 2}") for index in range(count)]


def test_the_papers_study_has_99_trials() -> None:
    drawn = draw_trials(names(33), ("three_stages", "ground_truth", "random"), 0, 0, 0, "1")
    pairs = Counter(frozenset((entry.a, entry.b)) for entry in drawn.assignments.values())
    assert sorted(pairs.values()) == [33, 33, 33]
    assert Counter(entry.a for entry in drawn.assignments.values()) == Counter(
        {"three_stages": 33, "ground_truth": 33, "random": 33}
    )
    assert len({(entry.clip, frozenset((entry.a, entry.b))) for entry in drawn.assignments.values()}) == 99


@pytest.mark.parametrize("systems", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("clips", [1, 2, 5, 8])
def test_pairs_clips_and_sides_are_balanced_whatever_the_numbers(systems: int, clips: int) -> None:
    letters = "abcdef"[:systems]
    everything = clips * systems * (systems - 1) // 2
    for trials in range(1, everything + 1):
        drawn = list(draw_trials(names(clips), letters, trials, 0, 0, f"{trials}").assignments.values())
        assert len(drawn) == trials
        pairs = Counter({frozenset(pair): 0 for pair in itertools.combinations(letters, 2)})
        pairs.update(frozenset((entry.a, entry.b)) for entry in drawn)
        assert max(pairs.values()) - min(pairs.values()) <= 1
        used = Counter({name.clip: 0 for name in names(clips)})
        used.update(entry.clip for entry in drawn)
        assert max(used.values()) - min(used.values()) <= 1
        assert len({(entry.clip, frozenset((entry.a, entry.b))) for entry in drawn}) == trials
        sides = Counter((entry.a, entry.b) for entry in drawn)
        assert all(abs(sides[a, b] - sides[b, a]) <= 1 for a, b in itertools.combinations(letters, 2))
        on_a, on_b = Counter(entry.a for entry in drawn), Counter(entry.b for entry in drawn)
        assert all(abs(on_a[name] - on_b[name]) <= 1 for name in letters)


def test_controls_are_spread_over_clips_and_sides() -> None:
    drawn = draw_trials(names(5), "ab", 0, 7, 8, "x").assignments.values()
    kinds = Counter(entry.kind for entry in drawn)
    assert kinds == {"pair": 5, "same": 7, "silence": 8}
    for kind, counts in (("same", [1, 1, 1, 2, 2]), ("silence", [1, 1, 2, 2, 2])):
        assert sorted(Counter(entry.clip for entry in drawn if entry.kind == kind).values()) == counts
    silent = Counter(entry.a for entry in drawn if entry.kind == "silence")
    assert silent == {"silence": 4, "ground_truth": 4}
    assert {(entry.a, entry.b) for entry in drawn if entry.kind == "same"} == {("ground_truth", "ground_truth")}


def test_the_seed_decides_everything() -> None:
    first, again, other = (draw_trials(names(9), "abc", 0, 1, 1, seed) for seed in ("1", "1", "2"))
    assert first == again
    assert list(first.assignments) == sorted(first.assignments)
    assert not set(first.assignments) & set(other.assignments)
    assert first.study_id != other.study_id


def test_neither_place_nor_side_depends_on_the_system_over_many_seeds() -> None:
    places: Counter[tuple[str, int]] = Counter()
    sides: Counter[tuple[str, str]] = Counter()
    for seed in range(600):
        drawn = list(draw_trials(names(3), "abc", 0, 0, 0, f"{seed}").assignments.values())
        places.update((min(entry.a + entry.b), place) for place, entry in enumerate(drawn))
        sides.update((entry.clip, entry.a) for entry in drawn)
    # pairs that begin with "a" are two of three: in each place 400 of 600, +- 5 standard deviations of 11.5
    assert all(abs(places["a", place] - 400) < 58 for place in range(9))
    assert all(abs(count - 600) < 5 * 20 for count in sides.values())


def test_more_trials_than_there_are_comparisons_are_refused() -> None:
    with pytest.raises(RequestError, match="3 systems and 4 clips make 12 comparisons, 13 are asked for"):
        draw_trials(names(4), "abc", 13, 0, 0, "1")
