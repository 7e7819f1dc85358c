"""Batch sizes: equal steps, within memory, or a refusal with the numbers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch_sizes import choose_batch_sizes, kept_buckets, listed_sizes, max_over_mean, squarest, step_seconds
from model.buckets import BucketTable
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


def test_barriers_have_no_batch_and_aspects_share_one() -> None:
    groups = kept_buckets(TABLE)
    assert list(groups) == [("64px", 8), ("64px", 1), ("32px", 8)]
    assert [len(group) for group in groups.values()] == [3, 3, 1]
    assert squarest(groups["64px", 8]).aspect == "1.0" or squarest(groups["64px", 8]).height == 64
    assert listed_sizes(TABLE) == {("64px", 8): 8, ("64px", 1): 24, ("32px", 8): 1}


def test_steps_become_equally_long_around_the_listed_mean() -> None:
    listed = step_seconds(cost(), TABLE, listed_sizes(TABLE))
    choice = choose_batch_sizes(cost(), TABLE)
    planned = step_seconds(cost(), TABLE, choice.batch_sizes)
    assert max_over_mean(planned.values()) == pytest.approx(choice.imbalance)
    assert choice.imbalance < 1.15 < 1.5 < max_over_mean(listed.values())
    by_pair = {pair: sum(listed[b] for b in group) / len(group) for pair, group in kept_buckets(TABLE).items()}
    assert choice.step_s == pytest.approx(sum(by_pair.values()) / 3, rel=0.18)


def test_a_wanted_step_time_is_met() -> None:
    choice = choose_batch_sizes(cost(), TABLE, step_s=1.0)
    assert all(0.7 < seconds < 1.4 for seconds in step_seconds(cost(), TABLE, choice.batch_sizes).values())


@settings(deadline=None, max_examples=25)
@given(memory_mib=st.integers(150, 20_000), fixed_s=st.sampled_from([0.0, 0.02, 0.5]))
def test_memory_is_filled_and_never_exceeded(memory_mib: int, fixed_s: float) -> None:
    model, memory = cost(fixed_s), memory_mib << 20
    choice = choose_batch_sizes(model, TABLE, memory_bytes=memory)
    groups = kept_buckets(TABLE)
    assert choice.batch_sizes.keys() == groups.keys()
    limit = memory * (1 - RESERVED_SHARE)
    peaks = [max(model.peak_bytes(b, choice.batch_sizes[pair]) for b in group) for pair, group in groups.items()]
    assert max(peaks) <= limit
    if fixed_s == 0 and max(choice.batch_sizes.values()) < 3000:  # steps may be 15 % shorter for a better balance
        more = [model.peak_bytes(b, int(choice.batch_sizes[p] / 0.85) + 2) for p, g in groups.items() for b in g]
        assert max(more) > limit


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError) as raised:
        choose_batch_sizes(cost(state_bytes=GIB), TABLE, memory_bytes=GIB)
    words = [
        "3 of 3 buckets",
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
    assert choice.batch_sizes == {("64px", 8): 1, ("64px", 1): pytest.approx(8, abs=2), ("32px", 8): 1}
    assert choice.bound_by_memory == (("32px", 8),)
