"""Who offers what: the parts that a run is made of are recognised by their members, and not opened by the question."""

import pytest
from tiny_shards import write_tiny_shards
from tiny_stages import tiny_stage
from tiny_trainer import Line

from hafm_lightning.callbacks import CsvLog, Dashboard, MusicEvaluation, WandbDashboard
from hafm_lightning.data_modules import Musdb18, TokenShards
from hafm_lightning.training.protocols import (
    ChecksRequest,
    CountsFlops,
    HasClock,
    ShardSource,
    TokenSource,
    UsesRunFolder,
)

OFFERS = {
    "TokenShards": {ChecksRequest, ShardSource, TokenSource},
    "MusicEvaluation": {ChecksRequest},
    "Dashboard": set(),
    "CsvLog": {HasClock},
    "WandbDashboard": {UsesRunFolder},
    "CoarseStage": {CountsFlops, TokenSource},
    "Line": set(),
}
PROTOCOLS = set().union(*OFFERS.values())


@pytest.fixture
def parts(tmp_path):
    made = [
        TokenShards(str(write_tiny_shards(tmp_path / "shards")), batch_size=2),
        MusicEvaluation(root=None),
        Dashboard(),
        CsvLog(str(tmp_path)),
        WandbDashboard(mode="disabled"),
        tiny_stage(),
        Line(),
    ]
    return {type(part).__name__: part for part in made}


@pytest.mark.parametrize("name", OFFERS)
def test_parts_are_recognised(parts, name):
    assert {protocol for protocol in PROTOCOLS if isinstance(parts[name], protocol)} == OFFERS[name]


def test_asking_for_shards_opens_none(tmp_path):
    """A data module that makes its shards later has no tokenizers to tell; the question must not end the run."""
    data = Musdb18(str(tmp_path), str(tmp_path / "absent"), str(tmp_path / "tokenizers"), batch_size=2)
    assert isinstance(data, ShardSource)
    assert data.manifests == {}
