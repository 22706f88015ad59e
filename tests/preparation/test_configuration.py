"""Settings of the preparation: the shipped files parse to what they say, and every key is documented."""

import dataclasses
import json
import re
import typing

import pytest
import yaml
from tiny_preparation import tiny_config, tiny_values, yaml_file

from hafm_lightning.cli import main
from hafm_lightning.configuration.settings import as_plain, explain
from hafm_lightning.configuration.signatures import choices_of, kinds_of
from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.configuration import PreparationConfig, read_config
from hafm_lightning.preparation.tokenizer_training import Encodec, Hubert, Offline
from hafm_lightning.songs import SongFolder, ToyBand


def test_the_papers_configuration_says_what_the_paper_says(repository):
    config = read_config(repository / "experiments" / "prepare.yaml")
    assert config.clips.duration_s == 10.0
    assert config.noise_sigma == 0.01
    assert isinstance(config.corpora[0], SongFolder)
    assert config.tokenizers.semantic == Hubert(layer=9)
    assert config.tokenizers.acoustic == Encodec()
    assert config.separation.model.endswith(".onnx")


def test_the_quickstart_needs_no_download(repository):
    config = read_config(repository / "experiments" / "quickstart" / "prepare.yaml", ["clips.hop_s=2", "root=/x"])
    assert isinstance(config.corpora[0], ToyBand)
    assert config.tokenizers.semantic == Offline()
    assert (config.clips.hop_s, config.root) == (2.0, "/x")


def test_the_papers_file_is_complete(repository):
    """Every setting stands in the file, so that nothing has to be looked up elsewhere, and each with the value read."""
    path = repository / "experiments" / "prepare.yaml"
    written = yaml.safe_load(path.read_text())
    assert as_plain(read_config(path), all_kinds=False) == json.loads(json.dumps(written))


def documented(kind: type) -> typing.Iterator[tuple[str, str]]:
    """Field and the text that its dataclass's docstring gives it, of a dataclass and those inside it."""
    texts = dict(re.findall(r"^ {8}(\w+): (.+)$", kind.__doc__ or "", flags=re.MULTILINE))
    for field in dataclasses.fields(kind):
        yield f"{kind.__name__}.{field.name}", texts.get(field.name, "")
        hint = typing.get_type_hints(kind)[field.name]
        for part in (hint, *kinds_of(hint).elements):
            for inner in choices_of(part).values() or kinds_of(part).classes:
                yield from documented(inner)


def test_every_setting_has_a_meaning_that_the_help_shows():
    meanings = dict(documented(PreparationConfig))
    assert len(meanings) > 60
    text = " ".join(explain(PreparationConfig, "prepare", "").split())
    for key, meaning in meanings.items():
        assert meaning, f"{key} is not explained in its dataclass's docstring"
        assert meaning.split(".")[0][:25] in text, key
    for option, default in (
        ("--clips.hop_s", "10.0"),
        ("--filters.leakage_max", "0.3"),
        ("--separation.parameters.n_fft", "null"),
        ("--styles", "False"),
    ):
        assert re.search(rf"{option} [^()]*(\([^()]*\)[^()]*)*\(type: [^()]*, default: {default}\)", text), option
    assert re.search(r"--root ROOT Output folder\. \(required, type: str\)", text)
    assert "corpora with kind: ToyBand" in text


@pytest.mark.parametrize(
    ("device", "gpus", "gpu_here", "expected"),
    [
        ("auto", 1.0, False, ("cpu", "cuda")),  # the machine that starts the run needs no GPU
        ("auto", 0.5, True, ("cuda", "cuda")),
        ("auto", 0.0, True, ("cuda", "cpu")),  # Ray hides the GPU from actors that ask for none
        ("cuda", 1.0, False, ("cpu", "cuda")),
        ("cpu", 1.0, True, ("cpu", "cpu")),
    ],
)
def test_ray_workers_run_where_they_asked_to(tmp_path, monkeypatch, device, gpus, gpu_here, expected):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu_here)
    engine = {"kind": "ray", "gpus_per_worker": gpus}
    config = tiny_config(tmp_path, [{"kind": "StemFolder", "path": "x"}], device=device, engine=engine)
    assert (config.resolved_device(), config.worker_device()) == expected


def test_a_gpu_that_ray_workers_do_not_ask_for_is_refused(tmp_path):
    config = tiny_config(tmp_path, [{"kind": "StemFolder", "path": "x"}], device="cuda", engine={"kind": "ray"})
    with pytest.raises(RequestError, match="gpus_per_worker is 0"):
        config.worker_device()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": {}}, "unknown key 'clip'"),
        ({"clips": {"hop": 2}}, "did you mean 'hop_s'?"),
        ({"clips": {"hop_s": "two"}}, "'clips.hop_s' must be float, got 'two'"),
        ({"clips": {"hop_s": 0.01}}, "clips: hop_s is 0.01, must be a positive multiple of 0.04 s"),
        ({"corpora": []}, "corpora is empty"),
        ({"corpora": [{"kind": "MusdbHq", "path": "x"}]}, "'corpora.0.kind' cannot be 'MusdbHq'"),
        ({"corpora": [{"kind": "MusdbHQ"}]}, "missing key corpora.0.path"),
        ({"corpora": [{"kind": "MusdbHQ", "path": "/nowhere"}]}, "corpus folder /nowhere does not exist"),
        ({"engine": {"kind": "spark"}}, "engine: kind is 'spark', choose local or ray"),
        ({"device": "cuda"}, "device is cuda, but torch sees no GPU"),
        ({"styles": 1}, "'styles' must be bool, got 1"),
        ({"tokenizers": {"folder": "/nowhere"}}, "no tokenizer in /nowhere/semantic"),
    ],
)
def test_wrong_requests_end_with_2_and_at_most_5_lines(musdb, tmp_path, capsys, change, message):
    import torch

    if "device" in change and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config = yaml_file(tmp_path / "c.yaml", tiny_values(tmp_path / "root", musdb) | change)
    assert main(["prepare", "--config", str(config)]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) <= 5
    assert not list((tmp_path / "root").rglob("shard-*"))
