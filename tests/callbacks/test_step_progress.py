"""The progress bar of a run."""

from contextlib import contextmanager

import pytest
from tiny_shards import write_tiny_shards
from tiny_trainer import Line, trainer_of

from hafm_lightning.callbacks import Checkpoints, StepProgress
from hafm_lightning.data_modules import TokenShards


@pytest.fixture
def data(tmp_path):
    return TokenShards(str(write_tiny_shards(tmp_path / "shards", train=(8,))), batch_size=2)


def test_the_bar_counts_the_steps_of_the_run(data, tmp_path, monkeypatch):
    bars = []

    class Recording:
        def __init__(self, description, total, unit):
            self.description, self.total, self.unit, self.done, self.notes = description, total, unit, 0, []

        def advance(self, n=1, note=""):
            self.done += n
            self.notes.append(note)

    @contextmanager
    def record(description, total=None, unit=""):
        bars.append(Recording(description, total, unit))
        yield bars[-1]

    monkeypatch.setattr("hafm_lightning.callbacks.step_progress.progress", record)
    settings = {"enable_progress_bar": True, "accumulate_grad_batches": 2, "num_sanity_val_steps": 2}
    saving = Checkpoints(monitor=None)
    trainer = trainer_of(tmp_path, StepProgress(), saving, max_epochs=3, max_steps=-1, **settings)
    trainer.fit(Line(), datamodule=data)
    assert [(bar.description, bar.total, bar.unit, bar.done) for bar in bars] == [("Line", 6, "steps", 6)]
    assert "validating 1/3" in bars[0].notes
    assert bars[0].notes[-1].startswith("validation 0.")

    again = trainer_of(tmp_path, StepProgress(), Checkpoints(monitor=None), max_steps=20, **settings)
    again.fit(Line(), datamodule=data, ckpt_path=tmp_path / "checkpoints" / "step-00000006.ckpt")
    assert (bars[1].description, bars[1].total, bars[1].done) == ("Line from step 6", 14, 14)
    trainer_of(tmp_path, StepProgress(), **settings).validate(Line(), datamodule=data)
    assert [(bar.description, bar.total, bar.done) for bar in bars[2:]] == [("Validating", 3, 3)]
