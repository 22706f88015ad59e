"""``fit`` on a CPU whose attention runs by the Triton kernels, in Triton's interpreter; ``TRITON_INTERPRET=1``.

python tests/support/triton_ddp_child.py {triton|plain} fit --config FILE ...
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from hafm_lightning.cli import main
from hafm_lightning.kernels import BACKENDS
from hafm_lightning.kernels.base import Backend, swap
from hafm_lightning.kernels.cuda import triton_blocks, triton_passes
from hafm_lightning.kernels.cuda.triton_attention import TritonRelativePosition
from hafm_lightning.kernels.cuda.triton_blocks import Blocks
from hafm_lightning.modeling.relative_position import RelativePosition


class Interpreted(Backend):
    """The CUDA backend's attention in training."""

    def for_training(self, model):
        swap(model, {RelativePosition: TritonRelativePosition})


class Gradients(pl.Callback):
    """Writes the gradients of every step, as the optimizer gets them, and the number of kernels that attended."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        found = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        found["kernels"] = torch.tensor(launches)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(found, self.folder / f"{trainer.global_step}-{trainer.global_rank}.pt")


launches = 0


def count_launches() -> None:
    """Let :data:`launches` of the imported module count."""
    launch = triton_passes._launch

    def counted(*arguments):
        sys.modules["triton_ddp_child"].launches += 1
        return launch(*arguments)

    triton_passes._launch = counted


if __name__ == "__main__":
    import triton_ddp_child

    torch.set_num_threads(1)
    if sys.argv[1] == "triton":
        BACKENDS["cpu"] = triton_ddp_child.Interpreted()
        sizes = {"forward": (32, 16), "query_gradient": (16, 32), "key_gradient": (16, 16)}
        triton_blocks.SIZES.update({kernel: (Blocks(*size, 1, 1),) for kernel, size in sizes.items()})
        triton_ddp_child.count_launches()
    else:
        BACKENDS["cpu"] = Backend()
    sys.exit(main(sys.argv[2:]))
