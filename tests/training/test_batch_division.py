"""The batch of a step over all devices: divided, refused, and the same clips wherever a run begins and continues."""

import itertools
from types import SimpleNamespace

import pytest
from fits import add_callback, fit, last_checkpoint, log_of, steps_seen, write_config
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from tiny_shards import write_tiny_shards

from hafm_lightning.data_modules import TokenShards
from hafm_lightning.data_modules.sampling import TrainingOrder
from hafm_lightning.errors import RequestError
from hafm_lightning.training.batch_division import divide

STEPS = 7
GLOBAL = {"data__batch_size": None, "data__global_batch_size": 4, "trainer__max_steps": STEPS} | {
    "checkpoints__every_steps": 1
}
"""Of write_config: 10 clips, so two steps an epoch."""


def trainer(processes=1, accumulated=1, callbacks=()):
    return SimpleNamespace(world_size=processes, accumulate_grad_batches=accumulated, callbacks=callbacks)


@pytest.mark.parametrize(
    ("processes", "accumulated", "clips"), [(1, 1, 36), (2, 1, 18), (4, 3, 3), (1, 3, 12), (12, 3, 1)]
)
def test_a_step_is_divided_over_processes_and_accumulated_batches(processes, accumulated, clips):
    share = divide(None, 36, trainer(processes, accumulated))
    assert (share.batch_size, share.clips) == (clips, 36)


def test_a_batch_of_one_process_is_taken_as_it_is():
    share = divide(12, None, trainer(processes=8, accumulated=3))
    assert (share.batch_size, share.clips) == (12, 12 * 8 * 3)


@pytest.mark.parametrize(
    ("processes", "accumulated", "advice"),
    [
        (8, 1, "use --data.global_batch_size 32 or 40, or --trainer.devices 6"),
        (5, 3, "use --data.global_batch_size 30 or 45, or --trainer.devices 4"),
        (1, 5, "use --data.global_batch_size 35 or 40"),
        (64, 1, "use --data.global_batch_size 64, or --trainer.devices 36"),
    ],
)
def test_a_step_that_does_not_divide_is_refused_with_sizes_that_do(processes, accumulated, advice):
    with pytest.raises(RequestError) as refused:
        divide(None, 36, trainer(processes, accumulated))
    first, second = str(refused.value).splitlines()
    assert first.startswith(f"data.global_batch_size 36 does not divide over {processes} processes")
    assert second == advice


@pytest.mark.parametrize(
    ("sizes", "given"), [({}, "neither is"), ({"batch_size": 2, "global_batch_size": 4}, "2 and 4")]
)
def test_one_of_the_two_sizes_is_given(sizes, given):
    with pytest.raises(RequestError, match=given) as refused:
        TokenShards("shards", **sizes)
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize("name", ["batch_size", "global_batch_size"])
def test_a_size_below_one_is_refused_by_name(name):
    with pytest.raises(RequestError, match=f"data.{name} is 0"):
        TokenShards("shards", **{name: 0})


def test_a_changing_accumulation_is_refused():
    with pytest.raises(RequestError, match="GradientAccumulationScheduler"):
        divide(None, 36, trainer(callbacks=[GradientAccumulationScheduler({0: 1, 3: 2})]))


def steps_of(clips, world, accumulated, drop_last, size=12):
    """The clips of each step of two epochs, as sets, by joining the batches of all processes."""
    settings = {"world": world, "per_step": accumulated, "drop_last": drop_last}
    orders = [TrainingOrder(clips, size // world // accumulated, rank=rank, **settings) for rank in range(world)]
    found = []
    for epoch in range(2):
        batches = []
        for order in orders:
            order.set_epoch(epoch)
            batches.append([request.clips.tolist() for request in order])
        assert len({len(own) for own in batches}) == 1, "a process would wait for ever"
        joint = [sorted(itertools.chain(*parts)) for parts in zip(*batches, strict=True)]
        for start in range(0, len(joint), accumulated):
            found.append(sorted(itertools.chain(*joint[start : start + accumulated])))
    return found


@pytest.mark.parametrize("clips", [24, 25, 29, 35, 40])
@pytest.mark.parametrize("drop_last", [True, False])
def test_steps_have_the_same_clips_however_they_are_divided(clips, drop_last):
    """With accumulation an epoch had a last step of fewer clips, although ``drop_last`` leaves those out."""
    expected = steps_of(clips, 1, 1, drop_last)
    full = [step for step in expected if len(step) == 12]
    for world, accumulated in ((2, 1), (1, 3), (4, 1), (2, 3), (3, 2)):
        given = steps_of(clips, world, accumulated, drop_last)
        if drop_last:
            assert given == expected == full
            continue
        assert [step for step in given if len(step) == 12] == full
        trained, wanted = (set(itertools.chain(*steps)) for steps in (given, expected))
        assert trained <= wanted
        assert len(wanted - trained) < world, "fewer than one clip a process is left out"


def clips_of_steps(folder, processes, first=0):
    """Optimizer step -> the clips of all its batches on all processes."""
    found = {}
    for rank in range(processes):
        for (step, _), (clips, _) in steps_seen(folder, rank).items():
            if step >= first:
                found.setdefault(step, []).extend(clips)
    return {step: sorted(clips) for step, clips in found.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("division")
    write_tiny_shards(folder / "shards", train=(6, 4), validation=(3,), test=(2,))
    config = write_config(folder / "whole", **GLOBAL)
    assert fit(config) == [0], log_of(config)
    return folder


@pytest.mark.parametrize(("before", "after"), [((1, 1), (1, 2)), ((1, 4), (2, 1)), ((2, 1), (1, 2)), ((2, 2), (1, 1))])
def test_a_run_continues_on_other_devices_with_the_same_steps(base, before, after):
    """Killed in the middle of an epoch; the checkpoint's counts of batches were those of the former division."""
    whole = clips_of_steps(base / "whole", 1)
    folder = base / f"{before}-{after}".replace(" ", "")
    config = write_config(folder, **GLOBAL | {"trainer__accumulate_grad_batches": before[1]})
    killing = add_callback(config, "resume_child.Kill", at="batch start", number=3 * before[1] + 1)
    assert -9 in fit(killing, processes=before[0]), log_of(config)
    begun = clips_of_steps(folder, before[0])
    assert begun == {step: whole[step] for step in begun}
    for trace in folder.glob("trace*"):
        trace.unlink()

    more = ["--trainer.accumulate_grad_batches", str(after[1]), "--ckpt_path", "auto"]
    assert fit(config, *more, processes=after[0], log="again") == [0] * after[0], log_of(config, "again")
    assert "continuing from" in log_of(config, "again")
    continued = clips_of_steps(folder, after[0])
    assert min(continued) == 3, "it continues in the middle of an epoch"
    assert continued == {step: whole[step] for step in range(min(continued), STEPS)}
    saved, expected = last_checkpoint(folder, STEPS), last_checkpoint(base / "whole", STEPS)
    assert saved["global_step"] == expected["global_step"] == STEPS
    progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
    assert progress == after[1] * expected["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]


def test_a_run_of_batch_size_continues_with_the_global_size_of_the_same_steps(base):
    folder = base / "from-batch-size"
    sizes = {"data__batch_size": 4, "data__global_batch_size": None}
    config = write_config(folder, **GLOBAL | sizes | {"trainer__max_steps": 3})
    assert fit(config) == [0], log_of(config)
    config = write_config(folder, **GLOBAL)
    assert fit(config, "--ckpt_path", "auto", log="again") == [0], log_of(config, "again")
    assert clips_of_steps(folder, 1) == clips_of_steps(base / "whole", 1)


def test_another_global_size_is_refused_by_name(base):
    config = base / "whole" / "config.yaml"
    more = ["--ckpt_path", "auto", "--trainer.max_steps", "9", "--data.global_batch_size", "2"]
    assert fit(config, *more, log="other") == [2]
    assert "global_batch_size 4 -> 2" in log_of(config, "other")


def test_a_step_of_unequal_shares_is_refused_before_a_folder_is_made(base):
    config = write_config(base / "odd", **GLOBAL | {"data__global_batch_size": 3})
    assert fit(config, processes=2) == [2, 2]
    assert "global_batch_size 3 does not divide over 2 processes" in log_of(config)
    assert not (base / "odd" / "logs").exists()
