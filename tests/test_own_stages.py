"""A stage whose class is the user's: trained, loaded, continued and generated with as the stage that it extends."""

import pytest
import torch
from own_stages import SmoothedCoarse, SmoothedFine, SmoothedSemantic
from tiny_models import TINY
from tiny_stages import clips, loader, tiny_stage, trainer

from hafm_lightning.accompanist.stage_network import networks_from_checkpoints
from hafm_lightning.checkpoint_format import METADATA_KEY, checked_metadata, role_of
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.token_scores import score
from hafm_lightning.stages import STAGES, CoarseStage, FineStage, SemanticStage, Stage, load_stage

OWN = {"semantic": SmoothedSemantic, "coarse": SmoothedCoarse, "fine": SmoothedFine}
PLAIN = {"semantic": SemanticStage, "coarse": CoarseStage, "fine": FineStage}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Role -> checkpoint of a user's stage after one step."""
    folder, paths = tmp_path_factory.mktemp("own"), {}
    for role, kind in OWN.items():
        stage = kind(backbone=TINY)
        stage.tokenizers = {use: {"kind": f"offline-{use}", "sha256": "a1"} for use in ("semantic", "acoustic")}
        fit = trainer(folder)
        fit.fit(stage, loader(clips(tiny_stage(PLAIN[role]), 2)))
        assert not torch.equal(stage.extra, torch.ones(3)), "the loss of the class is the one that is trained on"
        paths[role] = folder / f"{role}.ckpt"
        fit.save_checkpoint(paths[role])
    return paths


@pytest.mark.parametrize("role", OWN)
def test_load_stage_gives_the_stage_that_it_extends(trained, role):
    stage = load_stage(trained[role])
    assert type(stage) is PLAIN[role]
    batch = clips(tiny_stage(PLAIN[role]), 2)
    own = load_stage(trained[role], kind=OWN[role])
    assert type(own) is OWN[role]
    assert torch.equal(own.extra, torch.load(trained[role], weights_only=True)["state_dict"]["extra"])
    with torch.no_grad():
        torch.testing.assert_close(score(stage.model, batch).clip_losses, score(own.model, batch).clip_losses)


def test_generation_takes_the_three_networks(trained):
    networks = networks_from_checkpoints(trained["semantic"], trained["coarse"], trained["fine"], 3)
    assert [network.role for network in networks] == list(OWN)
    with pytest.raises(RequestError, match="the coarse stage must be a CoarseStage; were two of the files swapped"):
        networks_from_checkpoints(trained["semantic"], trained["fine"], None, 2)


def test_the_file_names_class_and_role(trained):
    saved = torch.load(trained["fine"], weights_only=True)[METADATA_KEY]
    assert (saved["class_path"], saved["role"]) == ("own_stages.SmoothedFine", "fine")


def test_a_file_of_an_earlier_version_names_the_class_alone(tmp_path):
    stage = tiny_stage(FineStage)
    fit = trainer(tmp_path)
    fit.fit(stage, loader(clips(stage, 2)))
    fit.save_checkpoint(tmp_path / "new.ckpt")
    content = torch.load(tmp_path / "new.ckpt", weights_only=True)
    for key in ("role", "class_path"):
        del content[METADATA_KEY][key]
    content.pop("digest", None)
    torch.save(content, tmp_path / "old.ckpt")
    assert role_of(checked_metadata(content, "old")) == "fine"
    assert type(load_stage(tmp_path / "old.ckpt")) is FineStage


@pytest.mark.parametrize("kind", STAGES.values())
def test_load_from_checkpoint_gives_the_stage_or_names_the_way(kind, trained, tmp_path):
    """It was: "the checkpoint's network differs", since Lightning builds the class with its default sizes."""
    stage = tiny_stage(kind, conditioning="aligned", pattern="parallel")
    fit = trainer(tmp_path)
    fit.fit(stage, loader(clips(stage, 2)))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "a.ckpt")
    assert type(loaded) is kind
    assert all(
        torch.equal(value, loaded.state_dict()[name]) for name, value in stage.model.state_dict(prefix="model.").items()
    )
    assert type(Stage.load_from_checkpoint(str(tmp_path / "a.ckpt"), map_location="cpu")) is kind
    with pytest.raises(RequestError, match="load_stage"):
        kind.load_from_checkpoint(tmp_path / "a.ckpt", guidance_dropout=0.2)
    other = next(one for one in STAGES.values() if one is not kind)
    with pytest.raises(RequestError, match=f"holds a {kind.__name__}, not a {other.__name__}"):
        other.load_from_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("kind", STAGES.values())
def test_calling_a_stage_gives_logits(kind):
    stage = tiny_stage(kind)
    batch = clips(stage, 2)
    with torch.no_grad():
        logits = stage(batch)
        assert torch.equal(logits, stage(batch.streams))
        assert torch.equal(logits, stage.model(batch.streams))
    target = stage.model.layout.target
    assert logits.shape == (2, target.codebooks, batch[target.name].shape[-1], target.vocabulary)
