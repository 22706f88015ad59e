"""The report's page shows every number, song and example of ``report.json``."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from html_pages import ParsedPage

from hafm_lightning.page.document import render
from hafm_lightning.preparation.report.page import report_page

REPORT: dict[str, Any] = {
    "root": "data/<root>",
    "songs": {"train": 11, "test": 3},
    "clips": {"train": 111, "test": 33},
    "hours": {"train": 1.234, "test": 0.5},
    "candidates": 171,
    "dropped": 27,
    "rules": {"leakage": {"any": 29, "first": 26}, "clipping": {"any": 7, "first": 1}},
    "quarantined": [{"name": "broken <song>", "reason": "not audio"}],
    "left_out": [],
    "shares": {"singing": 0.613, "bleed": 0.084},
    "separation": "separation: CUDAExecutionProvider, 61.5 s of audio a second in each worker",
    "warnings": ["vocals and <accompaniment> may be swapped"],
    "song_durations_s": {"edges": [0.0, 100.0, 200.0], "counts": [5, 9]},
    "loudness_lufs": {"edges": [-60.0, -30.0, 0.0], "counts": [71, 100]},
    "codebooks": [
        {"stream": "codes", "codebook": 3, "vocabulary": 128, "used": 100, "perplexity": 88.5, "counts": [*range(128)]}
    ],
    "tokenizers": {"semantic": {"kind": "hubert", "sha256": "0ab1", "resampler": "soxr", "other": 1}},
    "training": {
        "semantic": {
            "kmeans": {
                "points": 9001,
                "centroids": 500,
                "dead_centroids": 2,
                "perplexity": 321.456,
                "inertia": 12345.678,
                "explained": 0.8765,
            }
        },
        "acoustic": {},
    },
    "examples": [
        {
            "clip": "song & co@1.00",
            "split": "train",
            "vocal": "examples/00-vocal.wav",
            "instrumental": "examples/00-instrumental.wav",
            "decoded": "examples/00-decoded.wav",
            "tokens": [5, 6, 7],
        }
    ],
}


@pytest.fixture
def report() -> dict[str, Any]:
    return copy.deepcopy(REPORT)


def parsed(report: dict[str, Any]) -> ParsedPage:
    page = ParsedPage(render(report_page(report)))
    page.check_whole()
    page.check_narrow()
    return page


def rows(page: ParsedPage) -> list[list[str]]:
    """Texts of the cells of every row."""
    lines = re.findall(r"<tr>(.*?)</tr>", page.source, re.DOTALL)
    return [[ParsedPage(cell).text for cell in re.findall(r"<t[hd].*?</t[hd]>", line, re.DOTALL)] for line in lines]


def test_every_number_is_shown(report: dict[str, Any]) -> None:
    page = parsed(report)
    shown = rows(page)
    for text in ("61 %", "8 %", "CUDAExecutionProvider, 61.5 s", "Warning: vocals and <accompaniment> may be swapped"):
        assert text in page.text
    for row in (
        ["split", "songs", "clips", "hours"],
        ["train", "11", "111", "1.23"],
        ["test", "3", "33", "0.50"],
        ["leakage", "29", "26"],
        ["clipping", "7", "1"],
        ["broken <song>", "not audio"],
        ["codes", "3", "100", "128", "88.5"],
        ["semantic", "hubert", "0ab1", "soxr"],
        ["semantic", "0", "9001", "500", "2", "321.5", "12350.0", "87.6%"],
    ):
        assert row in shown
    for text in ("data/<root>", "27 of 171 clips dropped.", "No song was left out.", "first tokens: 5 6 7"):
        assert text in page.text


def test_histograms_show_their_counts(report: dict[str, Any]) -> None:
    page = parsed(report)
    assert "0 to 100: 5" in page.text
    assert "-30 to 0: 100" in page.text
    # 128 ids in 64 groups of 2, the most frequent first
    groups = [(127 - 2 * group) + (126 - 2 * group) for group in range(64)]
    for group, count in enumerate(groups):
        assert f"{2 * group} to {2 * group + 2}: {count}" in page.text
    assert len(page.all("rect")) == 2 + 2 + 64
    heights = [float(bar["height"]) for bar in page.all("rect")[4:]]
    assert heights == pytest.approx([120 * count / groups[0] for count in groups], abs=0.01)


def test_examples_have_players_with_names(report: dict[str, Any]) -> None:
    players = parsed(report).all("audio")
    assert [player["src"] for player in players] == [
        f"examples/00-{n}.wav" for n in ("vocal", "instrumental", "decoded")
    ]
    assert [player["aria-label"] for player in players] == [
        f"song & co@1.00 (train): {label}" for label in ("vocal", "instrumental", "from its tokens")
    ]


def test_long_lists_are_cut_with_a_pointer_to_the_rest(report: dict[str, Any]) -> None:
    report["left_out"] = [{"name": f"song {number}", "reason": "too short"} for number in range(203)]
    page = parsed(report)
    assert "The first 200; 3 more in quarantine.csv." in page.text
    assert page.text.count("too short") == 200
    assert "song 199" in page.text
    assert "song 200" not in page.text


def test_a_report_of_nothing_is_a_page(report: dict[str, Any]) -> None:
    empty = report | {name: type(report[name])() for name in ("songs", "clips", "hours", "rules", "quarantined")}
    empty |= {name: type(report[name])() for name in ("codebooks", "tokenizers", "training", "examples")}
    empty |= {"song_durations_s": {"edges": [0.0, 1.0], "counts": [0]}, "loudness_lufs": {"edges": [], "counts": []}}
    page = parsed(empty)
    assert "No song was quarantined." in page.text
    assert "k-means" not in page.text
    assert "no values" in page.text
