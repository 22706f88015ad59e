"""Checkpoints are data, describe themselves, and are refused by name where they do not fit: always a RequestError."""

import copy
import json
import os
import pickle

import lightning.pytorch as pl
import pytest
import torch
from damaged_json import survivors
from tiny_models import TINY, louden
from tiny_stages import clips, loader, tiny_stage, trainer

from hafm_lightning.callbacks import AtomicCheckpointIO
from hafm_lightning.checkpoint_format import (
    CHECKPOINT_FORMAT,
    METADATA_KEY,
    checked_metadata,
    describe_difference,
    read_checkpoint,
)
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.token_model import TokenModelConfig
from hafm_lightning.stages import STAGES, FineStage, OptimizerConfig, SemanticStage, load_stage
from hafm_lightning.untrusted import parse_json


@pytest.fixture(scope="module")
def content():
    """What a small stage's checkpoint holds."""
    stage = SemanticStage(backbone=TINY)
    louden(stage.model)
    return {"state_dict": stage.state_dict(), METADATA_KEY: stage.metadata(), "epoch": 3}


@pytest.fixture
def write(content, tmp_path):
    """Save the content after ``change(content)``; returns the path."""

    def save(change=lambda content: None):
        changed = copy.deepcopy(content)
        change(changed)
        path = tmp_path / "stage.ckpt"
        torch.save(changed, path)
        return path

    return save


def test_a_stage_round_trips(write, content):
    stage = load_stage(write())
    assert isinstance(stage, SemanticStage)
    assert not stage.training
    state = stage.state_dict()
    assert all(torch.equal(state[name], value) for name, value in content["state_dict"].items())
    assert stage.metadata() == content[METADATA_KEY]
    assert next(load_stage(str(write()), device="cpu").parameters()).device.type == "cpu"


def test_loading_survives_without_the_metric_states_of_another_version(write):
    def forget_means(content):
        content["state_dict"] = {k: v for k, v in content["state_dict"].items() if not k.startswith("means.")}
        content["state_dict"]["means.val.perplexity.mean_value"] = torch.zeros(())

    assert isinstance(load_stage(write(forget_means)), SemanticStage)


# --- files ------------------------------------------------------------------------------------------------------


class Hostile:
    """Runs code when unpickled."""

    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_a_file_that_holds_code_is_refused_and_does_not_run(tmp_path, capsys, content, plain_pickle):
    path = tmp_path / "hostile.ckpt"
    if plain_pickle:
        path.write_bytes(pickle.dumps({**content, "extra": Hostile()}))
    else:
        torch.save({**content, "extra": Hostile()}, path)
    with pytest.raises(RequestError, match=r"hostile.ckpt: not a readable checkpoint"):
        load_stage(path)
    assert "code from a checkpoint ran" not in capsys.readouterr().out


@pytest.mark.parametrize("url", ["https://host/a.ckpt", "http://host/a.ckpt", "s3://bucket/a.ckpt", "file:///a.ckpt"])
def test_urls_are_refused(url):
    with pytest.raises(RequestError, match="local files only"):
        load_stage(url)


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "nowhere.ckpt", tmp_path):
        with pytest.raises(RequestError, match=f"{path}: no such checkpoint file"):
            load_stage(path)


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.99])
def test_a_truncated_file_is_refused(write, kept):
    path = write()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(RequestError, match="not a readable checkpoint"):
        load_stage(path)


@pytest.mark.parametrize("foreign", [b"RIFF....WAVE", b"PK\x03\x04nothing", b"{}"])
def test_another_kind_of_file_is_refused(tmp_path, foreign):
    path = tmp_path / "song.ckpt"
    path.write_bytes(foreign)
    with pytest.raises(RequestError, match=r"song\.ckpt"):
        load_stage(path)


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, {"model": {}}, [1, 2], torch.zeros(3)])
def test_a_checkpoint_of_another_project_is_refused(tmp_path, foreign):
    path = tmp_path / "foreign.ckpt"
    torch.save(foreign, path)
    with pytest.raises(RequestError, match=r"foreign.ckpt: not a checkpoint"):
        load_stage(path)


def test_reading_gives_the_whole_content(write):
    assert read_checkpoint(write())["epoch"] == 3


# --- descriptions that do not fit -------------------------------------------------------------------------------


def change_model(key, value):
    def change(content):
        content[METADATA_KEY]["model"][key] = value

    return change


def change_metadata(key, value):
    def change(content):
        content[METADATA_KEY][key] = value

    return change


def drop_metadata(key):
    def change(content):
        del content[METADATA_KEY][key]

    return change


def rename_stream(content):
    content[METADATA_KEY]["streams"]["voice"] = content[METADATA_KEY]["streams"].pop("vocal_semantic")


def widen_stream(content):
    content[METADATA_KEY]["streams"]["vocal_semantic"]["vocabulary"] = 1000


def cast_weight(dtype):
    def change(content):
        content["state_dict"]["model.begin"] = content["state_dict"]["model.begin"].to(dtype)

    return change


def poison_weight(value):
    def change(content):
        content["state_dict"]["model.begin"] = content["state_dict"]["model.begin"].clone()
        content["state_dict"]["model.begin"][1] = value

    return change


def sparse_weight(content):
    content["state_dict"]["model.begin"] = content["state_dict"]["model.begin"].to_sparse()


def enlarge_weight(content):
    content["state_dict"]["model.begin"] = torch.zeros(99)


def lose_weight(content):
    del content["state_dict"]["model.begin"]


def add_weight(content):
    content["state_dict"]["model.rotary"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(change_metadata("format", CHECKPOINT_FORMAT + 1), "format 3 is newer than 2", id="newer"),
        pytest.param(change_metadata("format", "two"), "format 'two'", id="odd format"),
        pytest.param(change_metadata("stage", "MelodyStage"), "unknown stage 'MelodyStage'.*SemanticStage", id="stage"),
        pytest.param(change_metadata("stage", "FineStage"), "a FineStage writes 'instrumental_fine'", id="other stage"),
        pytest.param(rename_stream, "unknown token stream 'voice'", id="unknown stream"),
        pytest.param(widen_stream, "'vocal_semantic' differs: vocabulary: 1000 in the checkpoint, 500", id="stream"),
        pytest.param(change_model("rotary", True), "rotary", id="unknown setting"),
        pytest.param(change_model("pattern", "diagonal"), "pattern: .*'diagonal'", id="pattern"),
        pytest.param(change_model("backbone", {"layers": 2, "depth": 4}), "depth", id="backbone"),
        pytest.param(change_metadata("optimizer", {"momentum": 0.9}), "momentum", id="optimizer"),
        pytest.param(change_metadata("model", "large"), "model", id="no description"),
        *[
            pytest.param(drop_metadata(key), key, id=f"no {key}")
            for key in ("format", "stage", "model", "streams", "tokenizers", "optimizer", "duration_s")
        ],
        pytest.param(cast_weight(torch.int8), "model.begin are torch.int8, expected torch.float32", id="int8"),
        pytest.param(cast_weight(torch.int64), "model.begin are torch.int64", id="int64"),
        pytest.param(cast_weight(torch.bool), "model.begin are torch.bool", id="bool"),
        pytest.param(cast_weight(torch.complex64), "model.begin are torch.complex64", id="complex"),
        pytest.param(cast_weight(torch.float8_e4m3fn), "model.begin are torch.float8", id="float8"),
        pytest.param(poison_weight(float("nan")), "model.begin hold 1 NaN or infinite", id="nan"),
        pytest.param(poison_weight(float("inf")), "model.begin hold 1 NaN or infinite", id="inf"),
        pytest.param(sparse_weight, "model.begin are no plain tensor", id="sparse"),
        pytest.param(change_model("backbone", {"layers": 10**9}), "layers 1000000000: at most 512", id="layers"),
        pytest.param(change_model("backbone", {"width": 2**40}), "width 1099511627776: at most", id="width"),
        pytest.param(change_model("backbone", {"feedforward": 10**400}), "feedforward", id="feedforward"),
        pytest.param(change_model("look_behind_s", 1e12), "look_behind_s", id="look behind"),
        pytest.param(change_model("look_ahead_s", "0.3"), "look_ahead_s", id="look ahead"),
        pytest.param(change_metadata("duration_s", 1e300), "clips of 1e.300 s", id="duration"),
        pytest.param(change_metadata("duration_s", float("nan")), "damaged", id="nan duration"),
        pytest.param(change_metadata("tokenizers", {"semantic": torch.zeros(2)}), "damaged", id="tensors"),
        pytest.param(change_metadata("styles", [1]), "styles", id="styles"),
        pytest.param(enlarge_weight, r"do not fit .*: model.begin: \(99,\) in the file, \(", id="shape"),
        pytest.param(lose_weight, r"weights do not fit .*: model.begin: None in the file, \(", id="missing weight"),
        pytest.param(add_weight, r"do not fit .*: model.rotary: \(3,\) in the file, None in", id="unexpected weight"),
    ],
)
def test_what_does_not_fit_is_named_in_few_lines(write, change, named):
    path = write(change)
    with pytest.raises(RequestError, match=f"(?s)stage.ckpt.*{named}") as refusal:
        load_stage(path)
    assert len(str(refusal.value).splitlines()) <= 5


def test_metadata_that_is_no_description_is_refused(content):
    with pytest.raises(RequestError, match="here: not a checkpoint of a hafm_lightning stage"):
        checked_metadata({"state_dict": {}}, "here")
    with pytest.raises(RequestError, match="here"):
        checked_metadata({"state_dict": {}, METADATA_KEY: "a stage"}, "here")
    assert checked_metadata(content, "here")["stage"] == "SemanticStage"


def test_a_stage_of_another_kind_does_not_pass_for_this_one(content):
    with pytest.raises(RequestError, match="holds a SemanticStage, this run trains a FineStage"):
        FineStage(backbone=TINY).on_load_checkpoint(content)


def test_differences_are_named_with_dots_and_cut_short():
    saved = {"a": 1, "b": {"c": {"d": 2}}, "e": [1], "same": 0}
    current = {"a": 2, "b": {"c": {"d": 3}}, "e": [2], "same": 0, "new": 5}
    assert describe_difference(saved, current) == (
        "a: 1 in the checkpoint, 2 here; b.c.d: 2 in the checkpoint, 3 here; e: [1] in the checkpoint, [2] here"
    )
    assert describe_difference({"a": 1}, {"a": 1}) == ""
    assert describe_difference({}, {"a": 1}) == "a: None in the checkpoint, 1 here"


# --- stages in training ----------------------------------------------------------------------------------------


class Data(pl.LightningDataModule):
    """A data module that knows its tokenizers."""

    def __init__(self, stage, sha256="a1", folder=None):
        super().__init__()
        self.batch = clips(stage)
        self.tokenizers = {"semantic": {"kind": "hubert", "sha256": sha256}, "acoustic": {"kind": "encodec"}}
        self.tokenizers_folder = folder

    def train_dataloader(self):
        return loader(self.batch)


@pytest.mark.parametrize("kind", STAGES.values())
def test_a_checkpoint_restores_the_stage_with_what_it_says_of_itself(kind, tmp_path):
    stage = tiny_stage(
        kind, pattern="delay", conditioning="aligned", look_ahead_s=0.1, guidance_dropout=0.2,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5),
    )  # fmt: skip
    run = trainer(tmp_path)
    run.fit(stage, datamodule=Data(stage, folder=tmp_path / "tokenizers"))
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_stage(tmp_path / "a.ckpt")
    assert type(loaded) is kind
    assert not loaded.training
    assert loaded.metadata() == stage.metadata()
    assert loaded.tokenizers["semantic"] == {"kind": "hubert", "sha256": "a1"}
    assert loaded.tokenizers_folder == str(tmp_path / "tokenizers")
    assert loaded.duration_s == pytest.approx(0.08)
    assert loaded.optimizer_config.warmup_steps == 5
    streams = clips(stage, seed=5).streams
    with torch.no_grad():
        assert torch.equal(loaded.model(streams), stage.eval().model(streams))


def test_metadata_is_plain_data_that_a_safe_loader_reads(tmp_path):
    stage = tiny_stage()
    torch.save({"state_dict": {}, "hafm_lightning": stage.metadata()}, tmp_path / "plain.ckpt")
    assert torch.load(tmp_path / "plain.ckpt", weights_only=True)["hafm_lightning"] == stage.metadata()
    assert stage.metadata()["streams"]["instrumental_coarse"] == {"rate_hz": 75, "codebooks": 4, "vocabulary": 1024}


def test_training_goes_on_from_a_checkpoint_of_the_same_stage(tmp_path):
    stage = tiny_stage()
    run = trainer(tmp_path)
    run.fit(stage, datamodule=Data(stage))
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = tiny_stage()
    further = trainer(tmp_path, max_steps=2, max_epochs=2)
    further.fit(again, datamodule=Data(again), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert further.global_step == 2


def resume(stage, path, folder, **data):
    trainer(folder, max_steps=2, max_epochs=2).fit(
        stage, datamodule=Data(stage, **data), ckpt_path=path, weights_only=True
    )


def test_a_run_refuses_the_checkpoint_of_another_stage_layout_or_tokenizer(tmp_path):
    stage = tiny_stage()
    run = trainer(tmp_path)
    run.fit(stage, datamodule=Data(stage))
    path = tmp_path / "coarse.ckpt"
    run.save_checkpoint(path)
    with pytest.raises(RequestError, match="holds a CoarseStage, this run trains a FineStage"):
        resume(tiny_stage(FineStage), path, tmp_path)
    with pytest.raises(RequestError, match=r"pattern: 'flattened' in the checkpoint, 'delay' here"):
        resume(tiny_stage(pattern="delay"), path, tmp_path)
    with pytest.raises(RequestError, match=r"different tokenizer than this data: semantic\.sha256: 'a1' .*, 'zz' "):
        resume(tiny_stage(), path, tmp_path, sha256="zz")


def test_data_of_other_tokenizers_is_refused_before_the_first_step(tmp_path):
    stage = tiny_stage()
    stage.tokenizers = {"semantic": {"kind": "hubert", "sha256": "other"}, "acoustic": {"kind": "encodec"}}
    with pytest.raises(RequestError, match=r"semantic\.sha256: 'other'"):
        trainer(tmp_path).fit(stage, datamodule=Data(stage))


def test_damaged_descriptions_are_read_or_refused_in_a_line(content):
    description = {**json.loads(json.dumps(content[METADATA_KEY])), "tokenizers": {"semantic": {"sha256": "a1"}}}

    def read(text):
        saved = parse_json(text, "WHERE", advice="ADVICE")
        described = checked_metadata({METADATA_KEY: saved, "state_dict": {}}, "WHERE")
        TokenModelConfig.from_dict(described["model"])

    taken = survivors(description, read)
    free = {
        "tokenizers",
        "tokenizers_folder",
        "optimizer",
        "styles",
        "guidance_dropout",
        "duration_s",
        "stage",
        "model",
    }
    free |= {"streams", "role", "class_path", "vocal_noise_sigma"}
    assert {name.split()[0].split(".")[0] for name in taken} <= free, taken


def test_other_floating_types_of_training_are_read(write):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        stage = load_stage(write(cast_weight(dtype)))
        assert stage.model.begin.dtype == torch.float32


def test_a_checkpoint_of_training_carries_a_digest_and_no_flipped_bit_loads(tmp_path, capsys):
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(1000)}}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["state_dict"]["a"].sum() == 1000
    assert "digest" not in capsys.readouterr().err
    whole = (tmp_path / "a.ckpt").read_bytes()
    at = whole.index(torch.ones(1000).numpy().tobytes())
    for place, mapped in ((at + 3, False), (at + 2000, True)):
        (tmp_path / "b.ckpt").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(RequestError, match=r"b\.ckpt: a checkpoint is damaged"):
            read_checkpoint(tmp_path / "b.ckpt", mapped=mapped)
    os.mkfifo(tmp_path / "pipe.ckpt")
    with pytest.raises(RequestError, match="is a pipe"):
        read_checkpoint(tmp_path / "pipe.ckpt")
