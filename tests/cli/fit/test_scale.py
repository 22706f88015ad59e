"""The table of docs/scale.md is what describe computes. Run as a script, it writes the table again."""

import shlex
from pathlib import Path

from hafm_lightning.cli.fit.describe import describe

ROOT = Path(__file__).resolve().parents[3]
PAGE, MARK = ROOT / "docs" / "scale.md", "<!-- scale -->\n"
TEN = (
    "--model.backbone.layers 24 --model.backbone.width 1216 --model.backbone.heads 19 --model.backbone.feedforward 4864"
)
ROWS = [
    *((stage, "") for stage in ("semantic", "coarse", "fine")),
    *((stage, "--trainer.devices 4") for stage in ("semantic", "coarse", "fine")),
    ("fine", "--trainer.devices 8 --data.global_batch_size 40"),
    ("fine", "TEN"),
    ("fine", "TEN --trainer.accumulate_grad_batches 3"),
    *((stage, "TEN --trainer.devices 4") for stage in ("semantic", "coarse", "fine")),
    ("fine", "TEN --trainer.devices 4 --trainer.accumulate_grad_batches 3"),
    ("fine", "TEN --trainer.devices 4 --model.backbone.checkpoint_layers true"),
    ("fine", "TEN --trainer.devices 8 --data.global_batch_size 40"),
]


def row(stage: str, options: str) -> str:
    """A line of the table."""
    arguments = shlex.split(options.replace("TEN", TEN))
    facts = describe(["--config", str(ROOT / "experiments" / "aligned" / f"{stage}.yaml"), *arguments], gpu="H200")
    values = [
        round(facts["parameters"] / 1e6),
        facts["batch_size"],
        facts["memory_gib"]["gpu"],
        facts["sent_mib_per_step"],
        facts["hours"]["step_ms"],
        facts["hours"]["hours"],
    ]
    return f"| {stage} | {f'`{options}`' if options else ''} | " + " | ".join(map(str, values)) + " |"


def lines_of(table: str) -> list[str]:
    return table.splitlines()[2:]


def test_the_table_is_what_describe_computes():
    assert lines_of(PAGE.read_text().split(MARK)[1]) == [row(*each) for each in ROWS], f"run python {__file__}"


def test_the_page_names_the_options_of_a_stage_ten_times_as_large():
    assert f"`{TEN}`" in PAGE.read_text()


if __name__ == "__main__":
    before, table, after = PAGE.read_text().split(MARK)
    head = table.splitlines()[:2]
    PAGE.write_text(MARK.join([before, "\n".join([*head, *(row(*each) for each in ROWS)]) + "\n", after]))
