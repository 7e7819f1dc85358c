from typing import Any

import numpy as np
import pytest

from model.bucket_sampler import choose_epoch_buckets, count_reference_batches, reference_batches
from model.buckets import BucketChoice, BucketTable
from tests.parity import load_case

META, TENSORS = load_case("bucket_sampler")


@pytest.mark.parametrize("run", META["runs"], ids=lambda run: f"{run['num_replicas']}x-epoch{run['epoch']}")
def test_order_equals_the_reference(run: dict[str, Any]) -> None:
    table = BucketTable(buckets=META["config"]["bucket_config"])
    columns = (TENSORS[k].numpy() for k in "THW")
    choice = choose_epoch_buckets(table, *columns, seed=run["seed"], epoch=run["epoch"])
    assert count_reference_batches(choice) == run["get_num_batch"]
    for rank, expected in enumerate(run["batches_per_rank"]):
        batches = reference_batches(
            choice,
            seed=run["seed"],
            epoch=run["epoch"],
            rank=rank,
            num_replicas=run["num_replicas"],
            shuffle=run["shuffle"],
            drop_last=run["drop_last"],
            last_micro_batch_access_index=run["resume_steps"] * run["num_replicas"],
        )
        assert [batch.sample_keys for batch in batches] == expected


def golden_choice(epoch: int) -> BucketChoice:
    buckets = {
        "240p": {1: (1.0, 3), 16: (1.0, 2), 32: (0.5, 1)},
        "480p": {1: (0.5, 2), 16: (0.5, 2), 32: (0.0, None)},
    }
    row = np.arange(32)
    num_frames = np.array([1, 60, 120, 400])[row % 4]
    height = np.array([512, 240, 480, 720])[row // 4 % 4]
    width = np.array([512, 426, 854, 1280])[row // 4 % 4]
    return choose_epoch_buckets(BucketTable(buckets=buckets), num_frames, height, width, seed=42, epoch=epoch)


def shown(choice: BucketChoice, epoch: int, rank: int, **position: int) -> list[str]:
    batches = reference_batches(choice, seed=42, epoch=epoch, rank=rank, num_replicas=2, **position)
    return [f"{','.join(map(str, b.rows))}@{b.num_frames}-{b.height}-{b.width}" for b in batches]


def test_published_order_over_two_replicas() -> None:
    choice = golden_choice(epoch=0)
    assert count_reference_batches(choice) == 9
    rank_0 = ["25,21@16-240-426", "9,13@16-480-854", "19@32-320-320", "1,17@16-320-320"]
    assert shown(choice, 0, 0) == rank_0
    assert shown(choice, 0, 1) == ["29,5@16-240-426", "15@32-240-426", "7@32-240-426", "12,8,4@1-240-426"]
    assert shown(choice, 0, 0, last_micro_batch_access_index=6) == rank_0[3:]
    assert shown(choice, 0, 0, last_micro_batch_access_index=7) == rank_0[3:]


def test_published_order_of_the_second_epoch() -> None:
    choice = golden_choice(epoch=1)
    assert shown(choice, 1, 0)[:4] == ["25,13@16-480-854", "1,17@16-320-320", "19@32-320-320", "14@32-240-426"]
    assert shown(choice, 1, 1)[:4] == ["2@32-320-320", "6@32-240-426", "11@32-240-426", "5,21@16-240-426"]


@pytest.mark.parametrize("position", [{"rank": 2}, {"rank": -1}, {"last_micro_batch_access_index": -1}])
def test_a_wrong_position_is_refused(position: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"outside 0 to 1|negative"):
        list(reference_batches(golden_choice(epoch=0), seed=42, num_replicas=2, **position))
