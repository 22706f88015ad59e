"""Opening a split: missing folders and splits."""

import pytest
from tiny_shards import write_full_split

from hafm_lightning.errors import RequestError
from hafm_lightning.shards import (
    open_shards,
)


def test_missing_folders_and_splits_name_the_mend(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        open_shards(tmp_path / "nowhere", "train")
    write_full_split(tmp_path / "train")
    with pytest.raises(RequestError, match=r"no split 'validation'.*found: train"):
        open_shards(tmp_path, "validation")
