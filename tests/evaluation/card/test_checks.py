"""What controls say of columns, on scores whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from hafm_lightning.evaluation.card.card import Column, Row
from hafm_lightning.evaluation.card.checks import Judgement, judge
from hafm_lightning.evaluation.contrasts import Contrasts

SONGS = [f"song {index}" for index in range(24)]
BEATS = Column("beat_f_measure", "beats F", "higher", "")
CHROMA = Column("chroma_cosine", "chroma", "higher", "")
FAD = Column("fad_logmel", "FAD", "lower", "")
INFINITY = Column("fad_infinity_logmel", "FAD∞", "lower", "")
SPEED = Column("real_time_factor", "RTF", "lower", "")
COLUMNS = [FAD, INFINITY, BEATS, CHROMA, SPEED]
SYSTEMS = ["ground_truth", "codec_8", "codec_4", "random", "vocal_alone", "silence", "noise", "three_stages"]


def scores(key: str, means: dict[str, float], spread: float = 0.1) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(len(key))
    return {name: mean + spread * generator.standard_normal(len(SONGS)) for name, mean in means.items()}


def judgement(systems: list[str] = SYSTEMS, failed: dict[str, set[int]] | None = None, **changes: dict) -> Judgement:
    """Real metrics, but for ``changes``: column key -> the mean of each system."""
    means = {
        "beat_f_measure": dict(zip(SYSTEMS, (1.0, 0.9, 0.85, 0.3, 0.4, 0.0, 0.0, 0.6), strict=True)),
        "chroma_cosine": dict(zip(SYSTEMS, (0.8, 0.8, 0.7, 0.2, 1.0, 0.0, 0.0, 0.5), strict=True)),
        "fad_logmel": dict(zip(SYSTEMS, (0.0, 0.1, 0.3, 0.1, 2.0, 9.0, 5.0, 0.4), strict=True)),
    } | changes
    clips = {key: scores(key, of) for key, of in means.items() if not key.startswith("fad")}
    fad = {name: values for name, values in scores("fad_logmel", means["fad_logmel"]).items() if name in systems}
    sets = {"fad_logmel": {name: (lambda kept, it=it: float(it[kept].mean())) for name, it in fad.items()}}
    clips = {key: {name: it for name, it in of.items() if name in systems} for key, of in clips.items()}
    rows = [Row(name, name.replace("_", " "), len(SONGS), 0, {}, {}, {}) for name in systems]
    return judge(COLUMNS, rows, Contrasts(SONGS, clips, sets, failed or {}))


def verdicts(found: Judgement) -> dict[str, bool | None]:
    return {column.key: column.informative for column in found.columns}


def test_real_metrics_are_informative() -> None:
    found = judgement()
    assert verdicts(found) == {
        "fad_logmel": True,
        "fad_infinity_logmel": True,
        "beat_f_measure": True,
        "chroma_cosine": True,
        "real_time_factor": None,
    }
    text = "\n".join(found.checks)
    assert "codec 8 against random, on the same clips: significantly better in beats F, chroma." in text
    assert "random against noise, on the same clips: significantly better in FAD." in text
    assert "compared with itself in FAD, FAD∞, beats F: being best there proves nothing" in text
    assert "significantly above it: chroma (vocal alone)" in text
    assert "significantly nearer in FAD" in text
    assert "vocal alone in beats F, chroma" in text


@pytest.mark.parametrize("key", ["beat_f_measure", "chroma_cosine"])
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_a_metric_that_knows_the_truth_only_by_identity_is_uninformative(key: str, spread: float) -> None:
    """A tracker of random beats gives the ground truth F 1.00, since it is compared with itself."""
    flat = dict.fromkeys(SYSTEMS, 0.3) | {"ground_truth": 1.0}
    found = judgement(**{key: flat}) if spread else judgement(**{key: dict.fromkeys(SYSTEMS, 0.5)})
    assert verdicts(found)[key] is False
    column = next(column for column in found.columns if column.key == key)
    assert "uninformative on these clips: codec 8 is not significantly better than random" in column.judgement
    assert f"no significant difference in {column.label}" in "\n".join(found.checks)
    (model,) = found.verdicts
    assert f"{column.label} " not in model


def test_a_distance_that_cannot_tell_music_from_noise_is_uninformative() -> None:
    found = judgement(fad_logmel=dict.fromkeys(SYSTEMS, 1.0) | {"ground_truth": 0.0})
    assert verdicts(found)["fad_logmel"] is verdicts(found)["fad_infinity_logmel"] is False
    assert "cannot compare three stages with two" in "\n".join(found.checks)


def test_the_model_has_a_place_between_random_and_truth() -> None:
    found = judgement()
    (line,) = found.verdicts
    assert line.startswith("three stages, from random pairing (0 %) to codec 8 (100 %): beats F ")
    place = found.positions["three_stages"]["chroma_cosine"]
    assert place["value"] == pytest.approx(0.5, abs=0.08)
    assert place["low"] is not None
    assert place["low"] < 0.5 < place["high"]
    assert f"chroma {100 * place['value']:.0f} % [" in line


def test_only_questions_that_the_rows_allow_are_asked() -> None:
    assert not any(verdicts(judgement(["codec_8", "three_stages"])).values())
    without_codec = verdicts(judgement(["ground_truth", "random"]))
    assert without_codec["chroma_cosine"] is True  # the truth is compared with the vocal there
    assert without_codec["beat_f_measure"] is None  # and with itself here
    assert without_codec["fad_logmel"] is None


def test_failures_of_random_pairing_do_not_make_a_metric_informative() -> None:
    """A failed clip scores 0, which every other row would beat."""
    flat = dict.fromkeys(SYSTEMS, 0.5) | {"random": 0.0}
    assert verdicts(judgement(chroma_cosine=flat))["chroma_cosine"] is True
    everything = {"random": set(range(len(SONGS)))}
    assert verdicts(judgement(failed=everything, chroma_cosine=flat))["chroma_cosine"] is False
