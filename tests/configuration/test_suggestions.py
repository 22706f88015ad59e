"""The names that a misspelt one may stand for."""

import pytest

from hafm_lightning.configuration.suggestions import nearest


@pytest.mark.parametrize(
    ("word", "names", "expected"),
    [
        ("layer", ["layers", "width"], ["layers"]),
        ("Batch-Size", ["batch_size", "eval_batch_size"], ["batch_size"]),
        ("clip", ["clips", "clips_per_shard"], ["clips"]),
        ("every", ["every_steps", "every_minutes", "keep"], ["every_steps", "every_minutes"]),
        ("widht", ["layers", "width"], ["width"]),
        ("zz", ["zzz_long", "layers"], []),
    ],
)
def test_the_nearest_names(word, names, expected):
    assert nearest(word, names) == expected
