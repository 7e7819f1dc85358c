"""Batch sizes: equal steps, within memory, or a refusal with the numbers."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch_sizes import (
    choose_batch_sizes,
    kept_buckets,
    listed_sizes,
    max_over_mean,
    outermost,
    squarest,
    step_seconds,
    table_entries,
)
from model.buckets import Bucket, BucketTable
from model.config import STDiT2Config
from model.cost import GIB, RESERVED_SHARE, CostModel, Line, Workload

NETWORK = STDiT2Config(
    hidden_size=192, depth=4, num_heads=4, qk_norm=True, caption_channels=64, model_max_length=24, pred_sigma=False,
    in_channels=8, input_sq_size=128,
)  # fmt: skip
WORKLOAD = Workload(NETWORK, 10)
TABLE = BucketTable(
    buckets={"64px": {1: (1.0, 24), 8: (1.0, 8), 16: (0.0, None)}, "32px": {8: (0.5, 1)}},
    custom_resolutions={"64px": [[64, 64], [64, 80], [80, 64]], "32px": [[32, 32]]},  # type: ignore[dict-item]
)


def cost(fixed_s: float = 0.01, state_bytes: float = 1e8) -> CostModel:
    return CostModel(WORKLOAD, Line(fixed_s, 2e-11), Line(state_bytes, 1.0))


def by_name(sizes: Mapping[Bucket, int]) -> dict[tuple[str, int, str], int]:
    return {(bucket.resolution, bucket.num_frames, bucket.aspect): size for bucket, size in sizes.items()}


def rewritten(table: BucketTable, sizes: Mapping[Bucket, int]) -> BucketTable:
    """The table with other batch sizes."""
    shared, exceptions = table_entries(sizes)
    buckets = {
        name: {frames: (keep, shared.get((name, frames))) for frames, (keep, _) in counts.items()}
        for name, counts in table.buckets.items()
    }
    values = {"buckets": buckets, "batch_sizes": exceptions, "custom_resolutions": table.custom_resolutions}
    return BucketTable.model_validate(values)


def test_barriers_have_no_batch() -> None:
    groups = kept_buckets(TABLE)
    assert list(groups) == [("64px", 8), ("64px", 1), ("32px", 8)]
    assert [len(group) for group in groups.values()] == [3, 3, 1]
    assert squarest(groups["64px", 8]).aspect == "1.00"
    assert [bucket.aspect for bucket in outermost(groups["64px", 8])] == ["1.00", "0.80"]
    assert outermost(groups["32px", 8]) == groups["32px", 8]
    assert list(listed_sizes(TABLE).values()) == [8, 8, 8, 24, 24, 24, 1]


def test_steps_become_equally_long_around_the_listed_mean() -> None:
    listed = step_seconds(cost(), listed_sizes(TABLE))
    choice = choose_batch_sizes(cost(), TABLE)
    planned = step_seconds(cost(), choice.batch_sizes)
    assert max_over_mean(planned.values()) == pytest.approx(choice.imbalance)
    assert choice.imbalance < 1.05 < 1.3 < max_over_mean(listed.values())
    assert choice.step_s == pytest.approx(sum(listed.values()) / len(listed), rel=0.18)


def test_longer_aspects_get_fewer_samples_and_the_table_can_say_so() -> None:
    choice = choose_batch_sizes(cost(fixed_s=0.0), TABLE, step_s=0.5)
    sizes = by_name(choice.batch_sizes)
    assert sizes["64px", 8, "0.80"] == sizes["64px", 8, "1.25"] < sizes["64px", 8, "1.00"]
    shared, exceptions = table_entries(choice.batch_sizes)
    assert shared["64px", 8] == sizes["64px", 8, "0.80"]
    assert exceptions["64px"][8] == {"1.00": sizes["64px", 8, "1.00"]}
    assert "32px" not in exceptions
    again = rewritten(TABLE, choice.batch_sizes)
    assert by_name(listed_sizes(again)) == sizes
    assert by_name(choose_batch_sizes(cost(fixed_s=0.0), again, step_s=0.5).batch_sizes) == sizes


def test_aspects_that_hardly_differ_share_a_size() -> None:
    resolution = {"sizes": [[160, 160], [160, 164], [160, 240]]}
    values = {"buckets": {"wide": {1: (1.0, 8)}}, "custom_resolutions": {"wide": resolution}}
    sizes = list(choose_batch_sizes(cost(), BucketTable.model_validate(values), step_s=3.0).batch_sizes.values())
    assert sizes[0] == sizes[1] > 1.3 * sizes[2] > 20


def test_samples_that_seem_free_are_not_trusted() -> None:
    free = {("64px", 1): Line(0.1, 0.0)}  # what noise makes of two short probes
    choice = choose_batch_sizes(CostModel(WORKLOAD, Line(0.01, 2e-11), Line(1e8, 1.0), time=free), TABLE)
    most_flops = max(size * WORKLOAD.flops(bucket) for bucket, size in listed_sizes(TABLE).items())
    work = [size * WORKLOAD.flops(b) / most_flops for b, size in choice.batch_sizes.items() if b.num_frames == 1]
    assert 3 < min(work) <= max(work) <= 4
    assert choice.bound_by_memory == ()


def test_a_wanted_step_time_is_met() -> None:
    choice = choose_batch_sizes(cost(), TABLE, step_s=1.0)
    assert all(0.7 < seconds < 1.4 for seconds in step_seconds(cost(), choice.batch_sizes).values())


@settings(deadline=None, max_examples=25)
@given(memory_mib=st.integers(150, 20_000), fixed_s=st.sampled_from([0.0, 0.02, 0.5]))
def test_memory_is_filled_and_never_exceeded(memory_mib: int, fixed_s: float) -> None:
    model, memory = cost(fixed_s), memory_mib << 20
    choice = choose_batch_sizes(model, TABLE, memory_bytes=memory)
    assert choice.batch_sizes.keys() == listed_sizes(TABLE).keys()
    limit = memory * (1 - RESERVED_SHARE)
    assert max(model.peak_bytes(bucket, size) for bucket, size in choice.batch_sizes.items()) <= limit
    if fixed_s == 0 and max(choice.batch_sizes.values()) < 3000:  # steps may be 15 % shorter for a better balance
        more = [model.peak_bytes(bucket, int(size / 0.85) + 2) for bucket, size in choice.batch_sizes.items()]
        assert max(more) > limit


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError) as raised:
        choose_batch_sizes(cost(state_bytes=GIB), TABLE, memory_bytes=GIB)
    words = [
        "7 of 7 buckets",
        "0.9 GiB can be used",
        "64px x 8 frames (64x80, 160 tokens): 1.0 GiB",
        "64px x 1 frame (",
    ]
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_bucket_that_memory_cuts_short_is_named() -> None:
    small = kept_buckets(TABLE)["32px", 8][0]
    limit, sample = GIB * (1 - RESERVED_SHARE), WORKLOAD.activation_bytes(small)
    memory = {("32px", 8): Line(limit - 1.5 * sample, 1.0)}  # one sample fits, two do not
    model = CostModel(WORKLOAD, Line(0.0, 2e-11), Line(1e8, 1.0), memory=memory)
    choice = choose_batch_sizes(model, TABLE, memory_bytes=GIB, step_s=60.0)
    # no other bucket has a step as short as that: the others come as near as whole samples allow
    assert table_entries(choice.batch_sizes)[0] == {
        ("64px", 8): 1, ("64px", 1): pytest.approx(8, abs=2), ("32px", 8): 1
    }  # fmt: skip
    assert choice.bound_by_memory == (small,)
