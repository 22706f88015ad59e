"""Model folders: the same tokens after export and load, without Lightning, and nothing damaged is ever used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from damaged_json import survivors
from safetensors.torch import load_file, save_file
from tiny_band import TinyBand, sing

from hafm_lightning import Accompanist, files
from hafm_lightning.accompanist import model_folder
from hafm_lightning.audio import write_audio
from hafm_lightning.cli import main
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.token_model import TokenModelConfig


@pytest.fixture(scope="module")
def folder(live_band: TinyBand, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    metrics = out.with_name("metrics.json")
    metrics.write_text(json.dumps({"fad_logmel": 1.25, "clips": 10, "name": "x", "ok": True}))
    assert main(["export", "--out", str(out), *stage_options(live_band), "--license", "mit", "--metrics", str(metrics),
                 "--data", "Gliding tones.", "--name", "Tiny"]) == 0  # fmt: skip
    return out


def stage_options(band: TinyBand) -> list[str]:
    return ["--semantic", str(band.semantic), "--coarse", str(band.coarse), "--fine", str(band.fine)]


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def edit(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_folder_holds_data_only_and_describes_itself(folder: Path) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "coarse.safetensors",
        "config.json",
        "fine.safetensors",
        "generation_config.json",
        "semantic.safetensors",
        "tokenizers/acoustic/arrays.safetensors",
        "tokenizers/acoustic/tokenizer.json",
        "tokenizers/semantic/arrays.safetensors",
        "tokenizers/semantic/tokenizer.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == 2
    assert set(config["stages"]) == {"semantic", "coarse", "fine"}
    assert config["stages"]["coarse"]["model"]["pattern"] == "delay"
    assert config["stages"]["coarse"]["streams"]["instrumental_coarse"]["rate_hz"] == 75
    card = (folder / "README.md").read_text()
    for part in ("license: mit", "# Tiny", "Gliding tones.", "| fad_logmel | 1.25 |", "from_pretrained"):
        assert part in card
    assert "| ok |" not in card


def test_export_and_load_give_the_same_take(folder: Path, live_band: TinyBand) -> None:
    vocal = sing(0.6, 24000)
    trained = Accompanist.from_checkpoints(**live_band.files(), precision="fp32").accompany(vocal, seed=3)
    loaded = Accompanist.from_pretrained(folder, precision="fp32").accompany(vocal, seed=3)
    for name, ids in trained.tokens.items():
        np.testing.assert_array_equal(ids, loaded.tokens[name], err_msg=name)
    np.testing.assert_array_equal(trained.mix.samples, loaded.mix.samples)
    stages = [take.record["model"]["stages"] for take in (trained, loaded)]
    assert [s["sha256"] for s in stages[0].values()] == [s["sha256"] for s in stages[1].values()]


def test_a_folder_loads_and_plays_where_lightning_is_not_installed(folder: Path, tmp_path: Path) -> None:
    write_audio(tmp_path / "vocal.wav", sing(0.3, 24000))
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('lightning', 'pytorch_lightning', 'torchmetrics'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from hafm_lightning import Accompanist, files
take = Accompanist.from_pretrained(sys.argv[1]).accompany(sys.argv[2])
print(take.mix.samples.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "vocal.wav")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 7200)"


def test_damage_is_found_before_anything_is_computed(folder: Path, tmp_path: Path) -> None:
    changed = copy(folder, tmp_path / "changed")
    weights = bytearray((changed / "fine.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "fine.safetensors").write_bytes(weights)
    with pytest.raises(RequestError, match=r"fine\.safetensors.*sha256"):
        Accompanist.from_pretrained(changed)

    cut = copy(folder, tmp_path / "cut")
    (cut / "coarse.safetensors").write_bytes((folder / "coarse.safetensors").read_bytes()[:1000])
    with pytest.raises(RequestError, match=r"coarse\.safetensors"):
        Accompanist.from_pretrained(cut)

    (cut / "config.json").write_text("{")
    with pytest.raises(RequestError, match="damaged"):
        Accompanist.from_pretrained(cut)


def test_swapped_weights_files_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    swapped = copy(folder, tmp_path / "swapped")
    stages = json.loads((swapped / "config.json").read_text())["stages"]
    edit(swapped, stages={**stages, "semantic": stages["coarse"], "coarse": stages["semantic"]})
    with pytest.raises(RequestError, match=r"CoarseStage.*semantic stage must be"):
        Accompanist.from_pretrained(swapped)


def test_other_formats_and_paths_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="newer"):
        Accompanist.from_pretrained(edit(copy(folder, tmp_path / "newer"), format=99))
    with pytest.raises(RequestError, match="does not describe"):
        Accompanist.from_pretrained(edit(copy(folder, tmp_path / "other"), kind="something else"))
    outside = copy(folder, tmp_path / "outside")
    stages = json.loads((outside / "config.json").read_text())["stages"]
    stages["fine"]["file"] = "../model/fine.safetensors"
    with pytest.raises(RequestError, match="in the folder"):
        Accompanist.from_pretrained(edit(outside, stages=stages))


def test_two_stages_from_a_folder_only_when_asked(folder: Path, tmp_path: Path) -> None:
    without = copy(folder, tmp_path / "without")
    stages = json.loads((without / "config.json").read_text())["stages"]
    del stages["fine"]
    edit(without, stages=stages)
    with pytest.raises(RequestError, match="--stages 2"):
        Accompanist.from_pretrained(without)
    assert len(Accompanist.from_pretrained(without, stages=2).networks) == 2


def test_an_existing_folder_is_replaced_only_when_asked(folder: Path, live_band: TinyBand, tmp_path: Path) -> None:
    target = copy(folder, tmp_path / "model")
    options = ["export", "--out", str(target), *stage_options(live_band), "--name", "Second"]
    assert main(options) == 2
    assert "# Tiny" in (target / "README.md").read_text()
    assert main([*options, "--overwrite"]) == 0
    assert "# Second" in (target / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]  # no draft stays

    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert main(["export", "--out", str(other), *stage_options(live_band), "--overwrite"]) == 2
    assert (other / "thesis.txt").read_text() == "mine"


def test_a_failed_export_leaves_nothing(
    live_band: TinyBand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "model/x")

    monkeypatch.setattr(model_folder, "save_tokenizers", fail)
    assert main(["export", "--out", str(tmp_path / "model"), *stage_options(live_band)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "failed: model/x: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_a_hub_id_is_fetched_as_data_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    band = Accompanist.from_pretrained("singer/band", revision="v1")
    assert asked == {"name": "singer/band", "revision": "v1", "patterns": ["*.json", "*.safetensors", "*.md"]}
    assert band.origin == {"model": "singer/band", "revision": "v1"}


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "a/b/c", "nobody/nothing-at-all"])
def test_what_is_neither_a_folder_nor_on_the_hub_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match=r"no such folder|does not exist"):
        Accompanist.from_pretrained(name)


def test_push_uploads_the_data_files_of_a_folder_that_loads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, Any]] = []

    class Hub:
        def create_repo(self, name: str, **options: Any) -> None:
            calls.append((name, options))

        def upload_folder(self, **options: Any) -> Any:
            calls.append((options["repo_id"], options["allow_patterns"]))
            return SimpleNamespace(commit_url="https://hub/singer/band/commit/1")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert main(["push", "--model", str(folder), "--to", "singer/band", "--private"]) == 0
    assert calls[0] == ("singer/band", {"private": True, "exist_ok": True})
    assert calls[1] == ("singer/band", ["*.json", "*.safetensors", "*.md"])
    assert "commit/1" in capsys.readouterr().out

    calls.clear()
    damaged = copy(folder, tmp_path / "damaged")
    (damaged / "fine.safetensors").write_bytes(b"")
    assert main(["push", "--model", str(damaged), "--to", "singer/band"]) == 2
    assert main(["push", "--model", str(folder), "--to", "band"]) == 2
    assert calls == []


def test_push_without_the_hub_says_how_to_log_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "--model", str(folder), "--to", "singer/band"]) == 2
    assert "hf auth login" in capsys.readouterr().err


def test_a_style_survives_export(styled_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    write_audio(tmp_path / "vocal.wav", sing(0.3, 24_000))
    files = [word for role, path in styled_checkpoints.items() for word in (f"--{role}", str(path))]
    assert main(["export", "--out", str(tmp_path / "model"), *files]) == 0
    command = ["generate", "--vocal", str(tmp_path / "vocal.wav"), "--out", str(tmp_path / "out")]
    assert main([*command, "--model", str(tmp_path / "model"), "--style", "Jazz"]) == 0
    assert main([*command, "--model", str(tmp_path / "model"), "--style", "jazzz"]) == 2


def test_no_file_of_a_folder_changes_unseen(folder: Path, tmp_path: Path) -> None:
    def refused(name: str) -> str:
        with pytest.raises(RequestError) as refusal:
            Accompanist.from_pretrained(tmp_path / name)
        return str(refusal.value)

    for number, file in enumerate(("semantic/arrays.safetensors", "acoustic/tokenizer.json")):
        path = copy(folder, tmp_path / f"flip{number}") / "tokenizers" / file
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
        assert path.name in refused(f"flip{number}")

    added = copy(folder, tmp_path / "added") / "tokenizers" / "semantic" / "model"
    added.mkdir()
    (added / "config.json").write_text("{}")
    assert "does not list: 'semantic/model/config.json'" in refused("added")

    os.mkfifo(copy(folder, tmp_path / "fifo") / "pipe")
    (tmp_path / "fifo" / "coarse.safetensors").unlink()
    (tmp_path / "fifo" / "pipe").rename(tmp_path / "fifo" / "coarse.safetensors")
    assert "is a pipe" in refused("fifo")

    changed = copy(folder, tmp_path / "description")
    stages = json.loads((changed / "config.json").read_text())["stages"]
    stages["coarse"]["model"]["look_ahead_s"] = stages["coarse"]["model"]["look_ahead_s"] / 2 + 0.01
    edit(changed, stages=stages)
    assert "coarse" in refused("description")

    (copy(folder, tmp_path / "card") / "README.md").write_text("Mine.")
    Accompanist.from_pretrained(tmp_path / "card")


def test_weights_that_are_not_float32_or_not_finite_are_refused(folder: Path, tmp_path: Path) -> None:
    for name, change in {
        "int8": lambda value: (value * 100).to(torch.int8),
        "float64": lambda value: value.double(),
        "nan": lambda value: value * float("nan"),
    }.items():
        changed = copy(folder, tmp_path / name)
        state = load_file(changed / "fine.safetensors")
        state["begin"] = change(state["begin"])
        save_file(state, changed / "fine.safetensors")
        stages = json.loads((changed / "config.json").read_text())["stages"]
        stages["fine"]["sha256"] = files.sha256_of(changed / "fine.safetensors")
        stages["fine"]["digest"] = model_folder._entry_digest(stages["fine"])
        with pytest.raises(RequestError, match=r"fine\.safetensors: the weights begin"):
            Accompanist.from_pretrained(edit(changed, stages=stages))


def test_a_folder_of_version_1_loads_with_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = copy(folder, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    for entry in config["stages"].values():
        del entry["digest"]
    del config["files"]
    (old / "config.json").write_text(json.dumps({**config, "format": 1}))
    assert len(Accompanist.from_pretrained(old).networks) == 3
    assert "config.json: carries no digest" in capsys.readouterr().err


def test_damaged_descriptions_are_read_or_refused_in_a_line(folder: Path, tmp_path: Path) -> None:
    damaged = copy(folder, tmp_path / "damaged")
    content = json.loads((folder / "config.json").read_text())
    count = iter(range(10**9))

    def read(text: bytes) -> None:
        (damaged / "config.json").write_bytes(text)
        described = model_folder.read_config(damaged)
        if next(count) % 40 == 0:
            model_folder.read_model_folder(damaged)
        else:
            for entry in described["stages"].values():
                TokenModelConfig.from_dict(entry["model"])

    survivors(content, read)
