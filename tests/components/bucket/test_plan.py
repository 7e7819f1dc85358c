import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import tables
from components.bucket.plan import plan_evaluation, plan_training
from components.errors import KinoflowError
from components.kept_clips import Clips
from components.plan_file import text_key
from model.buckets import BucketTable

TINY = {"tiny": [(32, 32), (32, 48), (48, 32)], "big": [(64, 64), (64, 96)]}


def clip_table(sizes: list[tuple[int, int, int]], split: str = "train") -> pl.DataFrame:
    """One kept clip for each (num_frames, height, width)."""
    rows: list[dict[str, object]] = [
        {
            "clip_id": f"clip{i:04d}",
            "media": "image" if num_frames == 1 else "video",
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "fps": None if num_frames == 1 else 25.0,
            "caption": f"caption {i % 3}",
            "outcome": "kept",
            "split": split,
        }
        for i, (num_frames, height, width) in enumerate(sizes)
    ]
    return tables.with_caption_digests(tables.frame(rows, tables.CLIPS))


def plan(
    sizes: list[tuple[int, int, int]],
    table: BucketTable,
    num_batches: int,
    *,
    seed: int = 0,
    crops_per_clip: int | None = 2,
) -> pl.DataFrame:
    clips = Clips.of(clip_table(sizes), seed)
    found = plan_training(clips, table, stage="s", seed=seed, num_batches=num_batches, crops_per_clip=crops_per_clip)
    return found.table()


SIZES = st.lists(
    st.tuples(
        st.one_of(st.just(1), st.integers(2, 60)), st.sampled_from([30, 32, 48, 70]), st.sampled_from([32, 48, 96])
    ),
    min_size=1,
    max_size=40,
)


def tiny_table(*, keep_prob: float, batch_size: int = 3, frame_interval: int = 2) -> BucketTable:
    frame_counts = {1: (keep_prob, 2 * batch_size), 4: (keep_prob, batch_size), 16: (keep_prob, 1)}
    return BucketTable(
        buckets={"tiny": {f: (1.0, b) for f, (_, b) in frame_counts.items()}, "big": frame_counts},
        frame_interval=frame_interval,
        custom_resolutions=TINY,
        batch_sizes={"tiny": {4: {"0.67": batch_size + 1}}},
    )


@given(SIZES, st.integers(1, 5), st.integers(0, 2**40), st.sampled_from([1.0, 0.5, 0.0]), st.sampled_from([1, 2, None]))
@settings(max_examples=40, deadline=None)
def test_every_clip_once_per_epoch_and_one_shape_per_batch(
    sizes: list[tuple[int, int, int]], batch_size: int, seed: int, keep_prob: float, crops_per_clip: int | None
) -> None:
    table = tiny_table(keep_prob=keep_prob, batch_size=batch_size)
    fitting = {f"clip{i:04d}" for i, (f, h, w) in enumerate(sizes) if h * w >= 0.8 * 1024 and (f == 1 or f > 8)}
    if not fitting:
        with pytest.raises(KinoflowError, match="none of the"):
            plan(sizes, table, 1, seed=seed)
        return
    found = plan(sizes, table, 20, seed=seed, crops_per_clip=crops_per_clip)
    assert dict(found.schema) == dict(pl.Schema(tables.PLAN))
    assert found["batch"].unique().to_list() == list(range(20))
    assert found.equals(found.sort("batch", "slot"))
    assert found.group_by("batch").agg(pl.struct("num_frames", "height", "width").n_unique())["num_frames"].max() == 1
    batch_sizes = {triple[:3]: triple.batch_size or 0 for triple in table.triples}
    for epoch, rows in found.group_by("epoch"):
        clips = rows["clip_id"].to_list()
        assert len(clips) == len(set(clips))
        whole = epoch[0] < found["epoch"].max()
        assert set(clips) == fitting if whole else set(clips) <= fitting
        for bucket, part in rows.group_by("resolution", "num_frames", "aspect"):
            lengths = sorted(part.group_by("batch").len()["len"].to_list(), reverse=True)
            full = batch_sizes[bucket[0], bucket[1], bucket[2]]
            assert all(length <= full for length in lengths)
            assert all(length == full for length in lengths[:-1])
    for (_, _), slots in found.group_by("epoch", "batch"):
        assert slots["slot"].to_list() == list(range(len(slots)))


@given(SIZES, st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_more_ranks_or_steps_only_extend_the_plan(
    sizes: list[tuple[int, int, int]], ranks: int, steps: int, seed: int
) -> None:
    sizes = [*sizes, (20, 32, 32)]
    table = tiny_table(keep_prob=0.5)
    long = plan(sizes, table, 40, seed=seed)
    assert long.filter(pl.col("batch") < ranks * steps).equals(plan(sizes, table, ranks * steps, seed=seed))


@given(SIZES, st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_windows_lie_inside_their_clip(sizes: list[tuple[int, int, int]], crops_per_clip: int) -> None:
    sizes = [*sizes, (20, 32, 32)]
    found = plan(sizes, tiny_table(keep_prob=0.5), 40, crops_per_clip=crops_per_clip)
    clip_frames = {f"clip{i:04d}": size[0] for i, size in enumerate(sizes)}
    for row in found.iter_rows(named=True):
        window = 1 if row["num_frames"] == 1 else 2 * row["num_frames"]
        assert 0 <= row["start_frame"] <= clip_frames[row["clip_id"]] - window
    crops = found.group_by("clip_id", "resolution", "num_frames").agg(pl.col("start_frame").n_unique())
    assert crops["start_frame"].max() <= crops_per_clip


def test_crops_vary_between_epochs_and_cover_the_clip() -> None:
    table = BucketTable(buckets={"tiny": {4: (1.0, 1)}}, frame_interval=2, custom_resolutions=TINY)
    limited = plan([(109, 32, 32)], table, 100, crops_per_clip=4)["start_frame"]
    assert limited.n_unique() == 4
    for part, start in enumerate(sorted(limited.unique())):
        assert int(part / 4 * 101) <= start <= (part + 1) / 4 * 101
    free = plan([(109, 32, 32)], table, 1000, crops_per_clip=None)["start_frame"]
    assert set(free) == set(range(101))


def test_a_clip_keeps_its_draws_when_others_come_and_go() -> None:
    table = tiny_table(keep_prob=0.5)
    clips = clip_table([(40 + i, 64, 64) for i in range(30)])

    def draws(part: pl.DataFrame) -> dict[str, tuple[str, int]]:
        found = plan_training(Clips.of(part, 7), table, stage="s", seed=7, num_batches=len(part), crops_per_clip=None)
        first = found.table().filter(pl.col("epoch") == 0)
        return {r["clip_id"]: (r["resolution"], r["start_frame"]) for r in first.iter_rows(named=True)}

    everything, some = draws(clips), draws(clips[::3])
    assert some == {clip: everything[clip] for clip in some}
    assert {resolution for resolution, _ in everything.values()} == {"tiny", "big"}


def test_order_of_rows_does_not_matter_and_seeds_do() -> None:
    clips = clip_table([(20, 32, 32)] * 12)
    table = tiny_table(keep_prob=0.5)
    plans = [
        plan_training(Clips.of(part, seed), table, stage="s", seed=seed, num_batches=8, crops_per_clip=2).table()
        for part, seed in ((clips, 1), (clips.reverse(), 1), (clips, 2))
    ]
    assert plans[0].equals(plans[1])
    assert not plans[0].equals(plans[2])


def test_columns_of_a_sample() -> None:
    table = BucketTable(buckets={"tiny": {1: (1.0, 4), 8: (1.0, 4)}}, frame_interval=3, custom_resolutions=TINY)
    clips = clip_table([(25, 64, 96), (1, 96, 64), (30, 32, 32)]).with_columns(
        fps=pl.Series([23.976, None, None], dtype=pl.Float64)
    )
    found = plan_training(Clips.of(clips, 0), table, stage="s", seed=0, num_batches=3, crops_per_clip=1)
    found = found.table().sort("clip_id")
    assert found["aspect"].to_list() == ["0.67", "1.50", "1.00"]
    assert found.select("num_frames", "height", "width").rows() == [(8, 32, 48), (1, 48, 32), (8, 32, 32)]
    assert found["fps"].to_list() == pytest.approx([23.976, 120.0, 24.0], rel=1e-6)
    assert found["text_key"].to_list() == [text_key(f"caption {i}") for i in range(3)]
    assert found["latent_key"][0] == "clip0000@0+24/8x32x48"
    assert found["latent_key"][1] == "clip0001@0+1/1x48x32"


def test_evaluation_offers_every_clip_to_every_bucket_it_fits() -> None:
    table = BucketTable(
        buckets={"tiny": {1: (0.01, 2), 4: (0.5, 2)}, "big": {4: (0.001, 2), 8: (0.0, None)}},
        frame_interval=2,
        custom_resolutions=TINY,
    )
    clips = Clips.of(clip_table([(20, 64, 64), (12, 64, 64), (12, 32, 32), (1, 32, 32)], "eval"), 0)
    found = plan_evaluation(clips, table, batches_per_bucket=2).table()
    held_out = {(r["clip_id"], r["resolution"], r["num_frames"], r["start_frame"]) for r in found.iter_rows(named=True)}
    assert held_out == {
        ("clip0000", "tiny", 4, 6),
        ("clip0001", "tiny", 4, 2),
        ("clip0002", "tiny", 4, 2),
        ("clip0003", "tiny", 1, 0),
        ("clip0001", "big", 4, 2),  # the barrier at 8 frames keeps the longer clip out
    }
    assert found["batch"].to_list() == sorted(found["batch"].to_list())


def test_evaluation_is_limited_per_bucket_and_may_be_empty() -> None:
    table = tiny_table(keep_prob=0.0)
    clips = Clips.of(clip_table([(20, 32, 32)] * 50, "eval"), 0)
    found = plan_evaluation(clips, table, batches_per_bucket=2).table()
    assert found.group_by("batch").len()["len"].to_list() == [3, 3]
    nothing = plan_evaluation(Clips.of(clip_table([], "eval"), 0), table, batches_per_bucket=2).table()
    assert dict(nothing.schema) == dict(pl.Schema(tables.PLAN))
    assert not len(nothing)


def test_aspects_with_a_batch_size_of_their_own_fill_it_and_form_groups_by_themselves() -> None:
    table = BucketTable(
        buckets={"tiny": {4: (1.0, 6)}, "big": {4: (0.0, None)}},
        frame_interval=2,
        custom_resolutions=TINY,
        batch_sizes={"tiny": {4: {"0.67": 4, "1.50": 5}}},
    )
    sizes = [(20, 32, 32)] * 24 + [(20, 32, 48)] * 16 + [(20, 48, 32)] * 20
    clips = Clips.of(clip_table(sizes), 0)
    found = plan_training(clips, table, stage="s", seed=0, num_batches=12, crops_per_clip=1, cost_group=4).table()
    batches = found.group_by("batch", maintain_order=True).agg(pl.col("aspect").first(), pl.len())
    full = {"1.00": 6, "0.67": 4, "1.50": 5}
    assert batches["len"].to_list() == [full[aspect] for aspect in batches["aspect"]]
    groups = [set(batches["aspect"][start : start + 4]) for start in (0, 4, 8)]
    assert [len(group) for group in groups] == [1, 1, 1] and set.union(*groups) == set(full)
    held_out = plan_evaluation(Clips.of(clip_table(sizes, "eval"), 0), table, batches_per_bucket=2).table()
    assert dict(held_out.group_by("aspect").len().rows()) == {aspect: 2 * size for aspect, size in full.items()}


def test_what_cannot_be_planned_is_said_in_a_sentence() -> None:
    table = BucketTable(buckets={"144p": {16: (1.0, 2), 64: (0.0, None)}})
    with pytest.raises(KinoflowError) as error:
        plan([(48, 144, 256), (300, 100, 100)], table, 1)
    assert "Stage 's': none of the 2 training clips fits a bucket (144p x 16 frames)" in str(error.value)
    assert "largest clip is 144x256 with 48 frames, the longest has 300" in str(error.value)
    with pytest.raises(KinoflowError, match="plans no batch"):
        plan([(49, 144, 256)], table, 0)


def test_a_table_that_never_keeps_anything_does_not_hang() -> None:
    table = BucketTable(buckets={"144p": {16: (1e-300, 2)}})
    with pytest.raises(KinoflowError, match="no clip was kept in 1000 epochs in a row"):
        plan([(49, 144, 256)], table, 1)
