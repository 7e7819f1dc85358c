import hashlib
import itertools
from collections import Counter

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from components.bucket.order import Batches, arrange
from components.bucket.plan import plan_training
from components.kept_clips import Clips
from tests.components.bucket.test_plan import SIZES, clip_table, tiny_table

NUM_BUCKETS, BATCH_SIZE = 5, 4
COUNTS = st.lists(st.integers(0, 60), min_size=NUM_BUCKETS, max_size=NUM_BUCKETS)


def batches_of(counts: list[int], epoch: int, first_clip: int = 0) -> Batches:
    """Batches of an epoch with so many samples of each bucket."""
    sizes = [[min(BATCH_SIZE, count - done) for done in range(0, count, BATCH_SIZE)] for count in counts]
    flat = np.array([size for own in sizes for size in own], dtype=np.int64)
    total = int(flat.sum())
    return Batches(
        bucket=np.repeat(np.arange(len(counts), dtype=np.int32), [len(own) for own in sizes]),
        sizes=flat,
        epoch=np.full(len(flat), epoch, dtype=np.int32),
        is_full=flat == BATCH_SIZE,
        clip=np.arange(first_clip, first_clip + total, dtype=np.int32),
        start_frame=np.zeros(total, dtype=np.int32),
    )


@given(st.lists(COUNTS, min_size=1, max_size=4), st.integers(1, 8), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_groups_hold_batches_of_equal_cost_and_few_wait(epochs: list[list[int]], cost_group: int, seed: int) -> None:
    costs = np.array([1, 2, 2, 7, 30], dtype=np.int64)
    generator, waiting = np.random.default_rng(seed), Batches.none()
    seen: list[int] = []
    for epoch, counts in enumerate(epochs):
        new = batches_of(counts, epoch, first_clip=1000 * epoch)
        ordered, left = arrange(waiting, new, costs, cost_group, generator)
        assert len(ordered) % cost_group == 0
        assert len(left) < cost_group
        assert Counter([*ordered.clip, *left.clip]) == Counter([*waiting.clip, *new.clip])
        check_groups(ordered, waiting, costs, cost_group)
        counted = Counter(zip(new.bucket.tolist(), new.is_full.tolist(), strict=True))
        alike = sum(is_alike(ordered, start, cost_group) for start in range(0, len(ordered), cost_group))
        assert alike >= sum(count // cost_group for (_, is_full), count in counted.items() if is_full)
        seen += ordered.clip.tolist()
        waiting = left
    assert len(seen) == len(set(seen))


def is_alike(batches: Batches, start: int, cost_group: int) -> bool:
    group = slice(start, start + cost_group)
    return bool(batches.is_full[group].all()) and len(set(batches.bucket[group].tolist())) == 1


def check_groups(ordered: Batches, waiting: Batches, costs: np.ndarray, cost_group: int) -> None:
    """What is not of one bucket is sorted by cost, and batches that waited come first."""
    cost = ordered.sizes * costs[ordered.bucket]
    starts = range(0, len(ordered), cost_group)
    mixed = [cost[start : start + cost_group] for start in starts if not is_alike(ordered, start, cost_group)]
    mixed.sort(key=lambda own: (own.min(), own.max()))
    assert all(before.max() <= after.min() for before, after in itertools.pairwise(mixed))
    newest = [int(ordered.epoch[start : start + cost_group].min()) for start in starts]
    first_new = ordered.epoch.max(initial=0)
    held_old = [epoch < first_new for epoch in newest] if len(waiting) else []
    assert held_old == sorted(held_old, reverse=True)


@given(SIZES, st.integers(1, 3), st.sampled_from([2, 4, 6]), st.integers(0, 1000), st.sampled_from([1.0, 0.5]))
@settings(max_examples=30, deadline=None)
def test_any_number_of_ranks_sees_one_order_and_every_clip_once_an_epoch(
    sizes: list[tuple[int, int, int]], batch_size: int, group: int, seed: int, keep_prob: float
) -> None:
    sizes = [*sizes, (20, 32, 32)]
    table = tiny_table(keep_prob=keep_prob, batch_size=batch_size)
    fitting = {f"clip{i:04d}" for i, (f, h, w) in enumerate(sizes) if h * w >= 0.8 * 1024 and (f == 1 or f > 8)}
    steps = 10
    clips = Clips.of(clip_table(sizes), seed)
    plan = plan_training(
        clips, table, stage="s", seed=seed, num_batches=steps * group, crops_per_clip=2, cost_group=group
    )
    found = plan.table()
    assert len(plan) == steps * group
    assert found.select("epoch", "clip_id").is_unique().all()
    finished = found["epoch"].max() - group - 1  # a batch waits for as many batches at most
    for epoch in range(finished):
        assert set(found.filter(pl.col("epoch") == epoch)["clip_id"]) == fitting
    for ranks in (r for r in range(1, group + 1) if group % r == 0):
        taken = [
            [step * group + turn * ranks + rank for step in range(steps) for turn in range(group // ranks)]
            for rank in range(ranks)
        ]
        assert {len(own) for own in taken} == {steps * group // ranks}
        assert [batch for turn in zip(*taken, strict=True) for batch in turn] == list(range(len(plan)))


def test_buckets_are_spread_over_the_epoch() -> None:
    counts = [4000, 2400, 1600, 1200, 800]
    ordered, _ = arrange(Batches.none(), batches_of(counts, 0), np.ones(5, dtype=np.int64), 4, np.random.default_rng(0))
    place = np.arange(len(ordered)) / len(ordered)
    for bucket, count in enumerate(counts):
        own = place[ordered.bucket == bucket]
        groups = count / BATCH_SIZE / 4
        assert abs(own.mean() - 0.5) < 4 * (1 / 12 / groups) ** 0.5
        assert abs(own.std() - 12**-0.5) < 0.06


def test_the_order_without_groups_is_the_one_that_checkpoints_were_made_with() -> None:
    clips = clip_table([(12 + 3 * i, 64, (64, 96)[i % 2]) for i in range(40)])
    table = tiny_table(keep_prob=0.5)
    plan = plan_training(Clips.of(clips, 42), table, stage="s", seed=42, num_batches=60, crops_per_clip=2)
    digest = hashlib.sha256(plan.table().drop("text_key").write_csv().encode()).hexdigest()[:16]
    assert digest == "64c3426a3383d693"
