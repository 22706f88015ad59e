"""Batches as a loader worker sends them."""

import pickle

import numpy as np
import torch
from tiny_shards import write_tiny_shards

from hafm_lightning.data_modules import clip_batches
from hafm_lightning.data_modules.clip_batches import ClipBatches
from hafm_lightning.data_modules.sampling import BatchRequest
from hafm_lightning.modeling.token_scores import PairedBatch
from hafm_lightning.shards import open_shards
from hafm_lightning.tokens import TokenBatch


def test_batches_travel_as_16_bit_ids_and_arrive_as_they_are_gathered(tmp_path, monkeypatch):
    reader = open_shards(str(write_tiny_shards(tmp_path)), "validation")
    clips, others, starts = np.array([0, 4, 2]), np.array([3, 1, 4]), np.array([2, 0, 5])
    for request in (BatchRequest(clips, starts), BatchRequest(clips, starts, BatchRequest(others, starts[::-1]))):
        gathered = ClipBatches(reader, crop_s=0.2)[request]
        with monkeypatch.context() as in_worker:
            in_worker.setattr(clip_batches, "get_worker_info", object)
            sent = pickle.dumps(ClipBatches(reader, crop_s=0.2)[request])
        arrived = pickle.loads(sent)
        ids = sum(tensor.numel() for tensor in gathered.streams.values()) * (1 if request.other is None else 2)
        assert 2 * ids < len(sent) < 3 * ids + 1500
        assert type(arrived) is type(gathered) is (TokenBatch if request.other is None else PairedBatch)
        assert arrived.clip_ids == gathered.clip_ids == [reader.clip_ids[clip] for clip in clips]
        for name, tensor in gathered.streams.items():
            assert tensor.dtype == arrived[name].dtype == torch.int64
            assert torch.equal(arrived[name], tensor)
    alone = ClipBatches(reader, crop_s=0.2)[BatchRequest(others, starts[::-1])]
    assert all(torch.equal(arrived.other[name], tensor) for name, tensor in alone.streams.items())
