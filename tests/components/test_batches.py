import pytest
import torch

from components.batches import BatchReader, pad_text
from components.errors import KinoflowError
from components.plan_file import text_key
from components.shards import LOCATIONS_FILE, ShardIndex, ShardWriter
from tests.components.plans import plan_of


@pytest.fixture
def shards(tmp_path):
    with ShardWriter(tmp_path) as writer:
        for i in range(3):
            writer.add("latents", f"clip{i}@0+2/2x32x48", torch.full((4, 2, 4, 6), float(i)))
            writer.add("text", text_key(f"words {i}"), torch.full((1 + 2 * i, 8), float(i)))
    return ShardIndex(tmp_path / LOCATIONS_FILE, str(tmp_path))


def test_batches_are_read_by_their_number(shards):
    samples = [{"clip_id": f"clip{i}", "caption": f"words {i}", "width": 48} for i in range(3)]
    plan = plan_of([[samples[0], samples[1] | {"fps": 12.5}], [samples[2] | {"resolution": "big", "fps": 120.0}]])
    with BatchReader(shards, plan) as batches:
        assert len(batches) == 2 and [batches.resolution(i) for i in range(2)] == ["32px", "big"]
        assert len(batches.read(1)) == 1
        batch = batches.read(0)
        with pytest.raises(KinoflowError, match="holds 2 batches; there is no batch 2"):
            batches.read(2)
        assert batches.wait_s > 0
    assert batch.latents.shape == (2, 4, 2, 4, 6) and batch.latents[:, 0, 0, 0, 0].tolist() == [0, 1]
    assert batch.text_features.shape == (2, 3, 8) and batch.text_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    told = {name: values.tolist() for name, values in batch.clip_info.items()}
    assert told == {"num_frames": [2, 2], "height": [32, 32], "width": [48, 48], "ar": [1.5, 1.5], "fps": [24.0, 12.5]}


def test_scheduled_batches_are_the_same_and_come_in_that_order(shards, caplog):
    samples = [{"clip_id": f"clip{i}", "caption": f"words {i}", "width": 48, "fps": float(i)} for i in range(3)]
    plan = plan_of([[samples[i % 3]] for i in range(40)])
    order = [7, 3, 3, *range(39, 10, -1)]
    with BatchReader(shards, plan) as batches:
        alone = [batches.read(index) for index in order]
        batches.schedule(iter(order))
        for index, expected in zip(order, alone, strict=True):
            batch = batches.read(index)
            assert torch.equal(batch.latents, expected.latents) and torch.equal(batch.fps, expected.fps)
            assert torch.equal(batch.text_features, expected.text_features)
            assert torch.equal(batch.text_mask, expected.text_mask)
        assert batches.read(5).fps.tolist() == [2.0]  # the schedule is used up: on demand
        batches.schedule([1, 2, 99])
        assert batches.read(1).fps.tolist() == [1.0]
        assert batches.read(3).fps.tolist() == [0.0]
        assert "Batch 2 was scheduled, 3 was asked for: no reading ahead" in caplog.text
        batches.schedule([2, 99])
        assert batches.read(2).fps.tolist() == [2.0]
        with pytest.raises(KinoflowError, match="there is no batch 99"):
            batches.read(99)


def test_captions_are_filled_up_to_the_longest():
    features, mask = pad_text([torch.ones(2, 3), torch.ones(4, 3)])
    assert features.sum().item() == 18 and features[0, 2:].abs().sum() == 0
    assert mask.dtype == torch.int64 and mask.sum(1).tolist() == [2, 4]
