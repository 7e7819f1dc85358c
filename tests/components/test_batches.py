import pytest
import torch

from components import tables
from components.batches import BatchReader, pad_text
from components.errors import KinoflowError
from components.shards import ShardWriter


def plan_of(rows):
    same = {"epoch": 0, "aspect": "1:1", "num_frames": 2, "height": 32, "width": 48, "start_frame": 0}
    names = ("batch", "slot", "clip_id", "resolution", "latent_key", "text_key", "fps")
    return tables.frame([same | dict(zip(names, row, strict=True)) for row in rows], tables.PLAN)


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path) as shards:
        for i in range(3):
            shards.add("latents", f"l{i}", torch.full((4, 2, 4, 6), float(i)))
            shards.add("text", f"t{i}", torch.full((1 + 2 * i, 8), float(i)))
    return tmp_path


def test_batches_are_read_by_their_number(folder):
    plan = plan_of(
        [
            (0, 0, "a", "32px", "l0", "t0", 24.0),
            (0, 1, "b", "32px", "l1", "t1", 12.5),
            (1, 0, "c", "big", "l2", "t2", 120.0),
        ]
    )
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


def test_a_plan_that_skips_a_batch_is_refused(folder):
    with pytest.raises(KinoflowError, match="not numbered 0, 1, 2"):
        BatchReader(folder, plan_of([(0, 0, "a", "32px", "l0", "t0", 24.0), (2, 0, "b", "32px", "l1", "t1", 24.0)]))


def test_captions_are_filled_up_to_the_longest():
    features, mask = pad_text([torch.ones(2, 3), torch.ones(4, 3)])
    assert features.sum().item() == 18 and features[0, 2:].abs().sum() == 0
    assert mask.dtype == torch.int64 and mask.sum(1).tolist() == [2, 4]
