"""Every configuration that is shipped can be read, and every stage in them built."""

import pytest
import yaml
from shipped import EXPERIMENTS, TRAINING, name_of

from hafm_lightning.cli.fit.describe import describe
from hafm_lightning.cli.fit.training import read_config
from hafm_lightning.configuration.settings import read_settings
from hafm_lightning.evaluation.settings import EvaluateSettings
from hafm_lightning.listening.trials.settings import ListenSettings
from hafm_lightning.modeling.sampling import SamplingOptions


def test_the_papers_and_the_recommended_stages_are_shipped():
    names = {name_of(path) for path in TRAINING}
    assert {f"{folder}{stage}.yaml" for folder in ("", "aligned/") for stage in ("semantic", "coarse", "fine")} <= names


@pytest.mark.parametrize("path", TRAINING, ids=name_of)
def test_a_training_configuration_is_complete(path):
    config = read_config("fit", ["--config", str(path)])
    assert config.trainer.default_root_dir.startswith("logs/"), "runs belong under logs/, which git ignores"
    assert config.trainer.max_steps > 0
    assert config.trainer.use_distributed_sampler is False
    assert isinstance(config.seed_everything, int)
    facts = describe(["--config", str(path)])
    assert facts["parameters"] > 0
    assert facts["sequence_steps"] > 0
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"--config experiments/{name_of(path)}" in line for line in head), "its head names the command"


@pytest.mark.parametrize("stage", ["semantic", "coarse", "fine"])
def test_the_papers_stages_are_the_paper_to_the_letter(stage):
    """They had the `time` bias."""
    model = read_config("fit", ["--config", str(EXPERIMENTS / f"{stage}.yaml")]).model.init_args
    assert (model.pattern, model.conditioning, model.relative_position) == ("flattened", "prefix", "index")
    assert (model.prefix_mask, model.conditions, model.guidance_dropout) == ("causal", None, 0.1)
    assert vars(model.backbone) == {
        "layers": 12, "width": 512, "heads": 8, "feedforward": 2048, "dropout": 0.0, "checkpoint_layers": False
    }  # fmt: skip
    optimizer = model.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-4, 0.01)
    assert (optimizer.warmup_steps, optimizer.schedule) == (0, "constant")
    with_time = read_config("fit", ["--config", str(EXPERIMENTS / "variants" / f"{stage}_time.yaml")]).model.init_args
    assert with_time.relative_position == "time"
    assert {**vars(with_time), "relative_position": "index"} == vars(model)


@pytest.mark.parametrize("path", TRAINING, ids=name_of)
def test_full_size_stages_are_measured_with_the_literatures_embedding(path):
    (music,) = [
        callback["init_args"]
        for callback in yaml.safe_load(path.read_text())["trainer"]["callbacks"]
        if callback["class_path"].endswith("MusicEvaluation")
    ]
    if "quickstart" in name_of(path):
        assert music["optional"] is True, "on data of one's own there is no toy band"
    else:
        assert music["embeddings"] == [{"name": "vggish"}]
        assert music["root"] == "${oc.env:MUSDB18_HQ,null}"
        assert (music["clips"], music["duration_s"]) == (33, 3.0)


def documented_options() -> list[str]:
    """The table of docs/reproduction.md, "Options of a run"."""
    text = (EXPERIMENTS.parent / "docs" / "reproduction.md").read_text()
    table = text.partition("### Options of a run")[2].partition("###")[0]
    return [line.split("`")[1] for line in table.splitlines() if line.startswith("| ") and "`--" in line]


@pytest.mark.parametrize("options", documented_options())
def test_documented_options_change_a_run(options):
    given = ["--config", str(EXPERIMENTS / "semantic.yaml")]
    changed = read_config("fit", [*given, *options.split()])
    assert changed.as_dict() != read_config("fit", given).as_dict()


def test_run_folders_do_not_collide():
    roots = [read_config("fit", ["--config", str(path)]).trainer.default_root_dir for path in TRAINING]
    assert len(set(roots)) == len(roots)


@pytest.mark.parametrize("path", TRAINING, ids=name_of)
def test_every_run_is_heard_at_its_validations(path):
    callbacks = yaml.safe_load(path.read_text())["trainer"]["callbacks"]
    assert "hafm_lightning.callbacks.MusicEvaluation" in [callback["class_path"] for callback in callbacks]


def test_the_quickstart_samples_as_the_demo_does():
    quickstart = EXPERIMENTS / "quickstart"
    used = [yaml.safe_load((quickstart / f"{name}.yaml").read_text())["sampling"] for name in ("demo", "evaluate")]
    for stage in ("semantic", "coarse", "fine"):
        callbacks = yaml.safe_load((quickstart / f"{stage}.yaml").read_text())["trainer"]["callbacks"]
        used += [callback["init_args"]["sampling"] for callback in callbacks if "sampling" in callback["init_args"]]
    assert len(used) == 5
    assert len({SamplingOptions(**sampling) for sampling in used}) == 1


@pytest.mark.parametrize("name", ["evaluate", "quickstart/evaluate", "quickstart/demo"])
def test_an_evaluation_configuration_is_complete(name, monkeypatch):
    monkeypatch.setenv("MUSDB18_HQ", "/data/musdb18hq")
    settings = read_settings(EvaluateSettings, ["--config", str(EXPERIMENTS / f"{name}.yaml")])
    assert settings.has_model
    assert not [system for system in settings.systems if settings.absent(system)]
    head = (EXPERIMENTS / f"{name}.yaml").read_text()
    assert f"evaluate --config experiments/{name}.yaml" in head, "its head names the command"


@pytest.mark.parametrize(
    ("name", "evaluation"), [("listening", "evaluate"), ("quickstart/listening", "quickstart/demo")]
)
def test_a_listening_study_plays_what_its_evaluation_has_generated(name, evaluation, monkeypatch):
    monkeypatch.setenv("MUSDB18_HQ", "/data/musdb18hq")
    settings = read_settings(ListenSettings, ["--config", str(EXPERIMENTS / f"{name}.yaml")])
    kept = read_settings(EvaluateSettings, ["--config", str(EXPERIMENTS / f"{evaluation}.yaml")])
    same = (
        "output",
        "root",
        "split",
        "tokenizers",
        "model",
        "semantic",
        "coarse",
        "fine",
        "sampling",
        "seed",
        "pairing",
    )
    assert [getattr(settings, key) for key in (*same, "precision", "device", "protocols", "batch_clips")] == [
        getattr(kept, key) for key in (*same, "precision", "device", "protocols", "batch_clips")
    ]
    assert set(settings.study.systems) <= set(kept.systems)
    assert not [system for system in settings.study.systems if settings.absent(system)]
    head = (EXPERIMENTS / f"{name}.yaml").read_text()
    assert f"listen build --config experiments/{name}.yaml" in head, "its head names the command"


def test_the_papers_study_has_33_clips_and_three_systems(monkeypatch):
    monkeypatch.setenv("MUSDB18_HQ", "/data/musdb18hq")
    settings = read_settings(ListenSettings, ["--config", str(EXPERIMENTS / "listening.yaml")])
    (protocol,) = [protocol for protocol in settings.protocols if protocol.name == settings.study.protocol]
    assert (protocol.clips, protocol.duration_s) == (33, 3.0)
    assert sorted(settings.study.names) == ["ground_truth", "random", "three_stages"]
    assert settings.study.trials == 0
