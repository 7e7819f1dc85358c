import pytest
import torch

from components.batches import BatchReader, pad_text
from components.errors import KinoflowError
from components.plan_file import text_key
from components.shards import ShardWriter
from tests.components.plans import plan_of


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path) as shards:
        for i in range(3):
            shards.add("latents", f"clip{i}@0+2/2x32x48", torch.full((4, 2, 4, 6), float(i)))
            shards.add("text", text_key(f"words {i}"), torch.full((1 + 2 * i, 8), float(i)))
    return tmp_path


def test_batches_are_read_by_their_number(folder):
    samples = [{"clip_id": f"clip{i}", "caption": f"words {i}", "width": 48} for i in range(3)]
    plan = plan_of([[samples[0], samples[1] | {"fps": 12.5}], [samples[2] | {"resolution": "big", "fps": 120.0}]])
    with BatchReader(folder, plan) as batches:
        assert len(batches) == 2 and [batches.resolution(i) for i in range(2)] == ["32px", "big"]
        assert len(batches.read(1)) == 1
        batch = batches.read(0)
        with pytest.raises(KinoflowError, match="holds 2 batches; there is no batch 2"):
            batches.read(2)
    assert batch.latents.shape == (2, 4, 2, 4, 6) and batch.latents[:, 0, 0, 0, 0].tolist() == [0, 1]
    assert batch.text_features.shape == (2, 3, 8) and batch.text_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    told = {name: values.tolist() for name, values in batch.clip_info.items()}
    assert told == {"num_frames": [2, 2], "height": [32, 32], "width": [48, 48], "ar": [1.5, 1.5], "fps": [24.0, 12.5]}


def test_captions_are_filled_up_to_the_longest():
    features, mask = pad_text([torch.ones(2, 3), torch.ones(4, 3)])
    assert features.sum().item() == 18 and features[0, 2:].abs().sum() == 0
    assert mask.dtype == torch.int64 and mask.sum(1).tolist() == [2, 4]
