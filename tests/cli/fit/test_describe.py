"""Costs from settings alone, against what PyTorch counts and keeps when it really computes."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from tiny_shards import write_tiny_shards
from torch.utils.flop_counter import FlopCounterMode

from hafm_lightning.cli.fit.describe import GIB, activation_bytes, describe, training_bytes
from hafm_lightning.cli.fit.predicted_time import MEASURED, SPEED, batch_seconds
from hafm_lightning.errors import RequestError
from hafm_lightning.kernels import for_training
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions
from hafm_lightning.modeling.token_model import TokenModel, TokenModelConfig
from hafm_lightning.modeling.token_scores import token_cross_entropy
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.stages import STAGES
from hafm_lightning.tokens import CLIP_DURATION_S, STREAMS

CLIPS, FRAMES = 2, 30
SIZE = BackboneConfig(layers=3, width=64, heads=4, feedforward=192)


def config_of(pattern="flattened", conditioning="prefix", target="instrumental_coarse", **settings):
    conditions = ("vocal_semantic",)
    return TokenModelConfig(
        conditions, target, pattern=pattern, conditioning=conditioning, **{"backbone": SIZE, **settings}
    )


def streams_of(config, clips=CLIPS, frames=FRAMES):
    names = (*config.conditions, config.target)
    target = STREAMS[config.target]
    return {
        name: torch.randint(STREAMS[name].vocabulary, (clips, STREAMS[name].codebooks, n))
        for name in names
        for n in [STREAMS[name].frames(target.duration_s(frames))]
    }


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
@pytest.mark.parametrize("pattern", ["flattened", "delay", "parallel", "nonautoregressive"])
def test_forward_flops_equal_pytorchs_count(pattern, conditioning):
    """PyTorch does not count fused attention on the CPU: two products of D numbers for each visible pair are added."""
    config = config_of(pattern, conditioning)
    model = TokenModel(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(streams_of(config), 0 if pattern == "nonautoregressive" else None)
    counted = counter.get_total_flops()
    aside = counter.get_flop_counts()["Global"].get(torch.ops.aten.convolution, 0)  # a depth-wise one: next to nothing
    attention = 2 * 2 * CLIPS * SIZE.layers * SIZE.width * config.visible_pairs(FRAMES)
    assert config.forward_flops(CLIPS, FRAMES) == counted - aside + attention


@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
@pytest.mark.parametrize("pattern", ["flattened", "delay", "nonautoregressive"])
def test_visible_pairs_are_those_of_the_mask(pattern, mask):
    config = config_of(pattern, prefix_mask=mask)
    plan = config.layout.plan(FRAMES)
    module = RelativePosition(SIZE.heads, "time", config.layout.causal, 2, mask)
    positions = StepPositions.of(plan, torch.device("cpu"))
    steps = torch.arange(plan.steps)
    table, rows = module.table(), module.rows(positions, steps, steps)
    seen = int(torch.isfinite(table[rows][..., 0]).sum())
    assert config.visible_pairs(FRAMES) == seen


def kept_bytes(config, mixed):
    """Bytes that autograd keeps in a forward pass, each storage once, without the parameters."""
    model = TokenModel(config).train()
    for_training(model)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, alive = {}, []

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    streams = streams_of(config)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            logits = model(streams)
        token_cross_entropy(logits, streams[config.target]).mean()
    return sum(kept.values()), model


@pytest.mark.parametrize(("path", "mixed"), [("cpu", False), ("cpu-mixed", True)])
@pytest.mark.parametrize("size", [SIZE, BackboneConfig(4, 96, 6, 240)])
def test_activations_take_what_autograd_keeps(path, mixed, size):
    """The bytes that one more layer costs."""
    deep, shallow = (
        config_of(backbone=size),
        config_of(backbone=BackboneConfig(1, size.width, size.heads, size.feedforward)),
    )
    (more, model), (less, small) = kept_bytes(deep, mixed), kept_bytes(shallow, mixed)
    weights = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters())
    measured = more - less - (2 * weights if mixed else 0)  # autocast keeps a half-precision copy of the weights
    estimated = activation_bytes(deep, CLIPS, FRAMES, path) - activation_bytes(shallow, CLIPS, FRAMES, path)
    assert estimated == pytest.approx(measured, rel=0.03)


def test_recomputation_trades_memory():
    plain = config_of(backbone=BackboneConfig(12, 512, 8, 2048))
    again = config_of(backbone=BackboneConfig(12, 512, 8, 2048, checkpoint_layers=True))
    for path in ("cpu", "cuda-mixed"):
        assert activation_bytes(again, 1, 750, path) < activation_bytes(plain, 1, 750, path) / 5
    assert training_bytes(plain, 10**9, 1, 3, "cpu") == 16 * 10**9, "weights and moments alone, where they are more"


@pytest.mark.parametrize(
    ("name", "millions", "steps"),
    [
        ("semantic", 38.6, 1000),
        ("coarse", 42.5, 4000),
        ("fine", 44.1, 6000),
        ("aligned/semantic", 38.6, 500),
        ("aligned/coarse", 42.6, 3000),
        ("aligned/fine", 44.1, 3000),
    ],
)
def test_describe_tells_the_papers_sizes(repository, capsys, name, millions, steps):
    from hafm_lightning.cli import main

    assert main(["describe", "--config", str(repository / "experiments" / f"{name}.yaml")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert round(facts["parameters"] / 1e6, 1) == millions
    assert facts["sequence_steps"] == steps
    assert facts["clip_s"] == 10.0
    assert facts["global_batch_size"] == facts["batch_size"] == (12 if "coarse" in name else 36)
    assert (facts["devices"], facts["accumulate_grad_batches"], facts["sent_mib_per_step"]) == (1, 1, 0)
    assert facts["flops_per_step"] > 6 * 0.9 * facts["parameters"] * facts["batch_size"] * steps
    assert 4 < facts["memory_gib"]["gpu"] < 141


def described(repository, name, *options):
    return describe(["--config", str(repository / "experiments" / f"{name}.yaml"), *options])


@pytest.mark.parametrize(("devices", "accumulated", "clips"), [("4", "1", 9), ("[0, 1]", "3", 6), ("1", "3", 12)])
def test_a_step_means_the_same_on_any_number_of_devices(repository, devices, accumulated, clips):
    options = ["--trainer.devices", devices, "--trainer.accumulate_grad_batches", accumulated]
    facts, alone = described(repository, "aligned/fine", *options), described(repository, "aligned/fine")
    assert (facts["global_batch_size"], facts["batch_size"]) == (36, clips)
    for name in ("tokens_per_step", "flops_per_step", "parameters"):
        assert facts[name] == alone[name]
    assert facts["memory_gib"]["gpu"] < alone["memory_gib"]["gpu"]
    held = sum(facts["gpu_memory_parts_gib"].values())
    held -= facts["gpu_memory_parts_gib"]["gradients"] if accumulated == "1" else 0
    assert facts["memory_gib"]["gpu"] == pytest.approx(1.1 * held, abs=0.05)
    assert ("averaged_gradients" in facts["gpu_memory_parts_gib"]) == (facts["devices"] > 1)
    share = (facts["devices"] - 1) / facts["devices"]  # of a ring: each part is sent once to sum and once to spread
    assert facts["sent_mib_per_step"] == pytest.approx(2 * share * 4 * facts["parameters"] / 2**20, abs=0.1)


def test_a_step_that_does_not_divide_is_not_described(repository):
    with pytest.raises(RequestError, match="does not divide over 8 processes"):
        described(repository, "aligned/fine", "--trainer.devices", "8")


def test_a_batch_of_each_device_is_described(repository):
    options = ["--data.global_batch_size", "null", "--data.batch_size", "5", "--trainer.devices", "2"]
    facts = described(repository, "aligned/fine", *options, "--trainer.accumulate_grad_batches", "3")
    assert (facts["global_batch_size"], facts["batch_size"]) == (30, 5)


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row.chip} {row.stage} {row.conditioning}")
def test_predicted_times_are_near_the_measured_ones(row):
    with torch.device("meta"):
        config = STAGES[row.stage](conditioning=row.conditioning, kernels="none").model.config
    frames = config.layout.target.frames(CLIP_DURATION_S)
    assert 1000 * batch_seconds(config, row.clips, frames, row.chip) == pytest.approx(row.milliseconds, rel=0.25)


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row.chip} {row.stage} {row.conditioning}")
def test_described_gpu_memory_is_near_the_measured_one(repository, row):
    folder = "aligned/" if row.conditioning == "aligned" else ""
    name = f"{folder}{row.stage.removesuffix('Stage').lower()}"
    facts = described(repository, name, "--data.global_batch_size", str(row.clips))
    assert facts["memory_gib"]["gpu"] == pytest.approx(row.memory_gib, rel=0.1)
    parts = facts["gpu_memory_parts_gib"]
    assert parts["moments"] == pytest.approx(8 * facts["parameters"] / GIB, abs=0.01)
    in_use = sum(size for part, size in parts.items() if part != "gradients")
    assert in_use * 1.1 == pytest.approx(facts["memory_gib"]["gpu"], abs=0.05)


def test_hours_are_those_of_all_steps(repository, capsys):
    from hafm_lightning.cli import main

    config = ["--config", str(repository / "experiments" / "aligned" / "fine.yaml")]
    assert main(["describe", *config, "--gpu", "NVIDIA H200", "--trainer.accumulate_grad_batches", "3"]) == 0
    hours = json.loads(capsys.readouterr().out)["hours"]
    assert hours["gpu"] == "h200"
    assert hours["hours"] == pytest.approx(400_000 * hours["step_ms"] / 3.6e6, rel=0.01)
    assert main(["describe", *config, "--gpu", "a100"]) == 0
    slower = json.loads(capsys.readouterr().out)["hours"]
    assert slower["step_ms"] > 2 * hours["step_ms"], "a third of the peak, and the batch is the whole step's"
    assert main(["describe", *config, "--gpu", "A40", "--trainer.precision", "32-true"]) == 0
    assert json.loads(capsys.readouterr().out)["hours"] is None, "measured in half precision alone"
    assert main(["describe", *config, "--gpu", "Voodoo"]) == 2
    assert "known are B200, H200" in capsys.readouterr().err


def test_more_work_takes_more_time_and_a_little_work_the_hosts(repository):
    """A step of few clips is no faster than its kernels can be started."""
    times = [
        described(repository, "aligned/coarse", "--data.global_batch_size", str(clips)) for clips in (1, 2, 12, 24)
    ]
    config = STAGES["CoarseStage"](conditioning="aligned", kernels="none").model.config
    one, two, twelve, more = (batch_seconds(config, row["batch_size"], 750, "h200") for row in times)
    assert one == two == 12 * SPEED.host_s
    assert more == pytest.approx(2 * twelve, rel=0.05)


def test_a_clip_of_no_length_is_refused(repository, capsys):
    from hafm_lightning.cli import main

    for seconds in ("0", "-1", "0.05"):
        assert main(["describe", "--config", str(repository / "experiments/coarse.yaml"), "--clip_s", seconds]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) <= 2


FIT_AND_TELL_PEAK = """
import resource, sys
from hafm_lightning.cli import main
code = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("peak bytes", peak if sys.platform == "darwin" else 1024 * peak)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "clips", "precision", "layers"), [("semantic", 2, "32-true", 12), ("coarse", 1, "16-mixed", 3)]
)
def test_described_memory_is_what_fit_takes(repository, tmp_path, name, clips, precision, layers):
    """Two steps of the paper's stages on clips of 10 s: the process's peak, within a fifth.

    Half precision has fewer layers: processors without such operations take half an hour for all of them.
    """
    shards = write_tiny_shards(tmp_path / "shards", train=(4,), validation=(2,), test=(1,), duration_s=CLIP_DURATION_S)
    arguments = ["--config", str(repository / "experiments" / f"{name}.yaml"), "--data.global_batch_size", str(clips)]
    arguments += ["--trainer.precision", precision, "--model.backbone.layers", str(layers)]
    estimated = describe(arguments)["memory_gib"]["cpu"]
    run = ["--data.root", str(shards), "--trainer.max_steps", "2", "--trainer.default_root_dir", str(tmp_path / "logs")]
    done = subprocess.run(
        [sys.executable, "-c", FIT_AND_TELL_PEAK, "fit", *arguments, *run],
        cwd=repository,
        env=os.environ | {"WANDB_MODE": "offline", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (peak,) = re.findall(r"peak bytes (\d+)", done.stdout)
    assert estimated == pytest.approx(int(peak) / GIB, rel=0.2)
