"""Made-up input for every parser: it is read, or refused by name; nothing else may happen.

Valid files are changed at drawn places, in their values and in their bytes. In ``make test`` there are a few examples,
the same each time; ``make faults`` sets HAFM_FUZZ_EXAMPLES and draws others. Inputs once found stay as ``example``.
"""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from damage import paths_of, place, without
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_band import sing
from tiny_shards import write_tiny_split
from tiny_study import make_tiny_study
from workshop import evaluate_values, fit_values, prepare_values

from hafm_lightning.accompanist.model_folder import read_config as read_model_config
from hafm_lightning.audio import probe_audio, read_audio
from hafm_lightning.checkpoint_format import checked_metadata, read_checkpoint
from hafm_lightning.cli.fit.training import read_config as read_fit_config
from hafm_lightning.cli.repeating import read_record
from hafm_lightning.configuration.settings import build, read_settings
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.distances.frechet import GaussianStatistics
from hafm_lightning.evaluation.settings import EvaluateSettings
from hafm_lightning.listening.judge.answers import parse_answer
from hafm_lightning.listening.judge.base import Answer, Failed
from hafm_lightning.listening.study import CRITERIA, Key, Study
from hafm_lightning.listening.vote import Vote
from hafm_lightning.preparation.configuration import PreparationConfig
from hafm_lightning.shards import Manifest, map_shard
from hafm_lightning.stages import CoarseStage
from hafm_lightning.tokenizers.base import read_description

MANY = os.environ.get("HAFM_FUZZ_EXAMPLES", "")
fuzzed = settings(
    max_examples=int(MANY or 25),
    derandomize=not MANY,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NESTED: Any = None
for _ in range(80):
    NESTED = [NESTED]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [-1, 0, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "\0", "a/../b"]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.just(NESTED),
)
"""What a field may hold instead."""


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """``content`` with one to three values replaced or left out."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(paths_of(content))
        if not places:
            return copy.deepcopy(draw(VALUES))
        keys = draw(st.sampled_from(places))
        if draw(st.integers(0, 4)):
            # a copy: the next change may be inside of it, and drawn values are shared
            place(content, keys, copy.deepcopy(draw(VALUES)))
        else:
            without(content, keys)
    return content


@st.composite
def bent(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` cut, lengthened or with some bytes replaced, mostly near its beginning."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        near = draw(st.booleans())
        offset = draw(st.integers(0, min(200, len(found)) if near and found else len(found)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            found[offset : offset + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == 1:
            found[offset : offset + 4] = draw(st.binary(min_size=4, max_size=4))
        elif kind == 2:
            found = found[:offset]
        else:
            found[offset:offset] = draw(st.binary(max_size=9))
    return bytes(found)


def read_or_refused(read: Callable[[], Any]) -> None:
    """Call a parser: only a RequestError with a message may come out."""
    message = "read"
    try:
        read()
    except RequestError as error:
        message = str(error).strip()
    assert message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def _write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode("utf-8", "surrogatepass"))
    return path


@cache
def _manifest() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        write_tiny_split(Path(name), "train")
        return json.loads((Path(name) / "train" / "manifest.json").read_bytes())


@cache
def _shard() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        write_tiny_split(Path(name), "train")
        return (Path(name) / "train" / "shard-00000.safetensors").read_bytes()


@fuzzed
@given(st.data())
def test_manifests(data: st.DataObject) -> None:
    content = json.dumps(data.draw(changed(_manifest()))).encode()
    read_or_refused(lambda: Manifest.parse(content, "manifest.json").clip_ids())


@fuzzed
@given(st.data())
def test_bytes_of_manifests(data: st.DataObject) -> None:
    content = data.draw(bent(json.dumps(_manifest()).encode()))
    read_or_refused(lambda: Manifest.parse(content, "manifest.json").clip_ids())


@fuzzed
@given(data=st.data())
@example(data=None)
def test_shards(folder: Path, data: st.DataObject | None) -> None:
    content = data.draw(bent(_shard())) if data else b"\xff" * 64
    read_or_refused(lambda: {name: rows.sum() for name, rows in map_shard(_write(folder / "shard", content)).items()})


YAML_OF: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[Path], Any]]] = {
    "prepare": (prepare_values, lambda path: read_settings(PreparationConfig, ["--config", str(path)])),
    "evaluate": (evaluate_values, lambda path: read_settings(EvaluateSettings, ["--config", str(path)])),
    "fit": (fit_values, lambda path: read_fit_config("fit", ["--config", str(path)])),
}


@pytest.mark.parametrize("command", YAML_OF)
@fuzzed
@given(st.data())
def test_values_of_configurations(folder: Path, command: str, data: st.DataObject) -> None:
    values, read = YAML_OF[command]
    text = yaml.safe_dump(data.draw(changed(values())), allow_unicode=True)
    path = _write(folder / f"{command}.yaml", text.encode("utf-8", "surrogatepass"))
    read_or_refused(lambda: read(path))


@pytest.mark.parametrize("command", YAML_OF)
@fuzzed
@given(st.data())
def test_bytes_of_configurations(folder: Path, command: str, data: st.DataObject) -> None:
    values, read = YAML_OF[command]
    path = _write(folder / f"{command}.yaml", data.draw(bent(yaml.safe_dump(values()).encode())))
    read_or_refused(lambda: read(path))


@fuzzed
@given(st.data())
def test_settings_from_values(data: st.DataObject) -> None:
    read_or_refused(lambda: build(EvaluateSettings, data.draw(changed(evaluate_values()))))


@cache
def _description() -> dict[str, Any]:
    from workshop import BACKBONE

    from hafm_lightning.modeling.transformer import BackboneConfig

    stage = CoarseStage(backbone=BackboneConfig(**BACKBONE), conditioning="aligned", pattern="delay")
    stage.tokenizers = {"semantic": {"kind": "a", "sha256": "b"}, "acoustic": {"kind": "a", "sha256": "b"}}
    checkpoint: dict[str, Any] = {"state_dict": {}}
    stage.on_save_checkpoint(checkpoint)
    return checkpoint


@fuzzed
@given(st.data())
def test_descriptions_of_checkpoints(data: st.DataObject) -> None:
    checkpoint = data.draw(changed(_description()))
    if isinstance(checkpoint, dict):
        read_or_refused(lambda: checked_metadata(checkpoint, "a.ckpt"))


@fuzzed
@given(st.data())
def test_bytes_of_checkpoints(folder: Path, data: st.DataObject) -> None:
    whole = io.BytesIO()
    torch.save({"state_dict": {"a": torch.arange(4.0)}, "hafm_lightning": {"format": 1}}, whole)
    path = _write(folder / "a.ckpt", data.draw(bent(whole.getvalue())))
    read_or_refused(lambda: read_checkpoint(path))


IDENTITY = {
    "kind": "offline-semantic", "sha256": "a" * 64, "sample_rate_hz": 16000, "rate_hz": 50, "codebooks": 1,
    "vocabulary": 500, "resampler": "soxr-hq", "settings": {"layer": 9},
}  # fmt: skip


@fuzzed
@given(st.data())
def test_descriptions_of_tokenizers(folder: Path, data: st.DataObject) -> None:
    content = data.draw(changed({"format_version": 1, "identity": IDENTITY, "report": {"songs": 3}}))
    _write(folder / "tokenizer" / "tokenizer.json", content)
    read_or_refused(lambda: read_description(folder / "tokenizer"))


MODEL = {
    "kind": "hafm_lightning.model", "format": 1, "tokenizers": {"semantic": IDENTITY}, "styles": ["Rock"],
    "stages": {"semantic": {"file": "semantic.safetensors", "sha256": "a" * 64, "model": {"target": "x"}}},
    "card": {"data": "", "license": "", "metrics": {"fad": 1.0}},
}  # fmt: skip


@fuzzed
@given(st.data())
def test_descriptions_of_models(folder: Path, data: st.DataObject) -> None:
    _write(folder / "model" / "config.json", data.draw(changed(MODEL)))
    read_or_refused(lambda: read_model_config(folder / "model"))


TAKE = {
    "format": 1, "seed": 3, "settings": {"guidance": 1.0, "mix": {"gain_db": 0.0}}, "vocal": {"path": "v.wav"},
    "borders_s": [1.0], "batch": {"index": 0, "vocals": [{"path": "v.wav", "sha256": "a"}], "seeds": [3]},
    "model": {"origin": {"model": "m"}, "stages": {"semantic": {"sha256": "a"}}},
    "machine": {"threads": 1, "device": "cpu", "precision": "fp32"}, "outputs": {"mix.wav": {"sha256": "a"}},
}  # fmt: skip


@fuzzed
@given(st.data())
def test_takes(folder: Path, data: st.DataObject) -> None:
    path = _write(folder / "take.json", data.draw(changed(TAKE)))
    read_or_refused(lambda: read_record(path))


@fuzzed
@given(st.data())
def test_bytes_of_takes(folder: Path, data: st.DataObject) -> None:
    path = _write(folder / "take.json", data.draw(bent(json.dumps(TAKE).encode())))
    read_or_refused(lambda: read_record(path))


@cache
def _sound(kind: str) -> bytes:
    content = io.BytesIO()
    options = {"MP3": {"subtype": "MPEG_LAYER_III"}}.get(kind, {})
    soundfile.write(content, sing(0.2, 24_000).samples[0], 24_000, format=kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "AIFF", "W64", "AU", "CAF", "MP3"])
@fuzzed
@given(st.data())
def test_headers_of_sounds(folder: Path, kind: str, data: st.DataObject) -> None:
    path = _write(folder / f"sound.{kind.lower()}", data.draw(bent(_sound(kind))))

    def read() -> None:
        probe_audio(path)
        assert np.isfinite(read_audio(path).samples).all()

    read_or_refused(read)


@fuzzed
@given(st.data())
def test_statistics(folder: Path, data: st.DataObject) -> None:
    path = folder / "statistics.npz"
    GaussianStatistics.from_rows(np.random.default_rng(0).standard_normal((20, 3))).save(path)
    path.write_bytes(data.draw(bent(path.read_bytes())))
    read_or_refused(lambda: GaussianStatistics.load(path))


OPINION = {"choice": "A", "confidence": 3, "reason": "the beat agrees"}


@fuzzed
@given(data=st.data())
@example(data=None)
def test_answers_of_judges(data: st.DataObject | None) -> None:
    content: Any = dict.fromkeys(CRITERIA, OPINION)
    text = json.dumps(data.draw(changed(content))) if data else "{" * 7000
    assert isinstance(parse_answer(text, CRITERIA), Answer | Failed)


@fuzzed
@given(st.text(max_size=300))
def test_prose_of_judges(text: str) -> None:
    assert isinstance(parse_answer(text, CRITERIA), Answer | Failed)


VOTE = {
    "voter": "anna", "trial": "0" * 12, "presentation": "AB", "choices": {"rhythm": "A"}, "confidence": 3.0,
    "seconds": 1.5, "note": "",
}  # fmt: skip


@fuzzed
@given(st.data())
def test_votes(data: st.DataObject) -> None:
    read_or_refused(lambda: Vote.from_dict(data.draw(changed(VOTE))))


@pytest.mark.skipif(find_spec("starlette") is None, reason="needs the extra listen")
@fuzzed
@given(st.data())
def test_requests_with_votes(data: st.DataObject) -> None:
    from hafm_lightning.listening.serve.desk import Refused
    from hafm_lightning.listening.serve.routes import _json

    body = data.draw(bent(json.dumps(VOTE).encode()))
    status = 201
    try:
        _json(body)
    except Refused as refused:
        status = refused.status
    assert status in (201, 400)


@pytest.fixture(scope="module")
def study(folder: Path) -> tuple[Path, Any, Any]:
    (folder / "study").mkdir()
    make_tiny_study(folder / "study", clips=1)
    return folder / "study", *(json.loads((folder / "study" / name).read_text()) for name in ("study.json", "key.json"))


@fuzzed
@given(st.data())
def test_studies_and_keys(study: tuple[Path, Any, Any], data: st.DataObject) -> None:
    place_of, about, key = study

    def read() -> None:
        Key.load(place_of / "key.json", Study.load(place_of))

    _write(place_of / "key.json", data.draw(changed(key)))
    _write(place_of / "study.json", about)
    read_or_refused(read)
    _write(place_of / "study.json", data.draw(changed(about)))
    read_or_refused(read)
