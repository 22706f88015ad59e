"""Two processes train by DDP (gloo) with the Triton kernels: gradients of the joint batch. ``make test-triton``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from resume_child import free_port
from tiny_shards import write_tiny_shards

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="Triton's interpreter has a process of its own: make test-triton"
)
CHILD = Path(__file__).resolve().parents[1] / "support" / "triton_ddp_child.py"
STEPS = 2


def gradients_of(shards: Path, folder: Path, kernels: str, processes: int, accumulated: int = 1) -> list[list[dict]]:
    """The gradients of each step, on each process, from a ``fit`` over global batches of four clips."""
    config = {
        "seed_everything": 2,
        "model": {
            "class_path": "hafm_lightning.stages.CoarseStage",
            "init_args": {
                "backbone": {"layers": 1, "width": 16, "heads": 1, "feedforward": 24},
                "conditioning": "aligned",
                "guidance_dropout": 0.0,
            },
        },
        "data": {
            "class_path": "hafm_lightning.data_modules.TokenShards",
            "init_args": {"root": str(shards), "global_batch_size": 4, "crop_s": 0.16},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": processes,
            "strategy": "ddp" if processes > 1 else "auto",
            "accumulate_grad_batches": accumulated,
            "max_steps": STEPS,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "default_root_dir": str(folder / "logs"),
            "callbacks": [{"class_path": "triton_ddp_child.Gradients", "init_args": {"folder": str(folder)}}],
        },
    }
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, str(CHILD), kernels, "fit", "--config", str(folder / "config.yaml")]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    running = []
    for rank in range(processes):
        own = environment | ({"LOCAL_RANK": str(rank)} if processes > 1 else {})
        with (folder / f"{rank}.log").open("w") as log:
            running.append(subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT))
    codes = [process.wait(timeout=300) for process in running]
    assert codes == [0] * processes, (folder / "0.log").read_text()[-3000:]
    return [[torch.load(folder / f"{step}-{rank}.pt") for rank in range(processes)] for step in range(STEPS)]


def test_gradients_of_two_processes_are_those_of_one_with_the_joint_batch(tmp_path):
    pytest.importorskip("triton", reason="the extra triton is not installed")
    shards = write_tiny_shards(tmp_path / "shards", train=(4, 4), validation=(2,), test=(2,))
    plain = gradients_of(shards, tmp_path / "plain", "plain", 1)
    alone = gradients_of(shards, tmp_path / "alone", "triton", 1)
    both = gradients_of(shards, tmp_path / "both", "triton", processes=2, accumulated=2)
    for step, (exact, one, several) in enumerate(zip(plain, alone, both, strict=True)):
        for found in (*one, *several):
            assert found.pop("kernels") > 0
        assert exact[0].pop("kernels") == 0
        assert all(torch.equal(several[0][name], several[1][name]) for name in several[0]), "processes differ"
        assert exact[0].keys() == one[0].keys() == several[0].keys()
        for name, true in exact[0].items():
            scale = max(float(true.abs().max()), 1e-4)
            assert float((one[0][name] - true).abs().max()) < 1e-4 * scale, (step, name, "kernels")
            assert float((several[0][name] - one[0][name]).abs().max()) < 1e-4 * scale, (step, name, "processes")
