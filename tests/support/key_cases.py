"""Small configurations of fit and prepare, and the message that a command prints when it refuses one."""

import pytest

from hafm_lightning.cli import main

CONFIG = """\
model:
  class_path: hafm_lightning.stages.CoarseStage
  init_args:
    pattern: flattened
    backbone: {layers: 1, width: 16, heads: 2, feedforward: 24}
    optimizer:
      learning_rate: 1e-4
data:
  class_path: hafm_lightning.data_modules.TokenShards
  init_args:
    root: shards
    batch_size: 4
trainer:
  max_steps: 2
  logger:
    class_path: hafm_lightning.callbacks.WandbDashboard
    init_args:
      project: hafm
  callbacks:
    - class_path: lightning.pytorch.callbacks.EarlyStopping
      init_args:
        monitor: val/loss
    - class_path: hafm_lightning.callbacks.MusicEvaluation
      init_args:
        root: null
        clips: 2
        sampling:
          temperature: 0.9
        embeddings:
          - name: logmel
checkpoints:
  keep: 2
"""
MUSIC = "hafm_lightning.callbacks.MusicEvaluation"
SHARDS = "hafm_lightning.data_modules.TokenShards"

PREPARATION = """\
root: out
corpora:
  - {kind: ToyBand, path: toy}
clips:
  hop_s: 5
tokenizers:
  semantic:
    kind: Hubert
    layer: 9
separation:
  parameters:
    n_fft: 6144
"""


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a refused command line; it must have exit code 2, at most five lines and no traceback."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert 1 <= len(printed.err.splitlines()) <= 5, printed.err
    return printed.err
