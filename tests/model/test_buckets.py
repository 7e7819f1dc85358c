import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model.aspect import RESOLUTIONS
from model.buckets import BucketTable, choose_bucket, choose_buckets, describe_buckets
from model.pcg64 import first_uniform
from tests.parity import load_case

STAGES = ("bucket_stage1", "bucket_stage2", "bucket_stage3")
Case = tuple[dict[str, Any], dict[str, np.ndarray], BucketTable]


@pytest.fixture(params=STAGES)
def case(request: pytest.FixtureRequest) -> Case:
    meta, tensors = load_case(request.param)
    return meta, {k: v.numpy() for k, v in tensors.items()}, BucketTable(buckets=meta["config"]["bucket_config"])


def with_keep_prob(table: BucketTable, *, keep_barriers: bool) -> BucketTable:
    """The table with every keep probability 1, barriers included unless kept."""
    buckets = {
        name: {
            f: (prob if keep_barriers and prob == 0.0 else 1.0, batch_size or 1)
            for f, (prob, batch_size) in rows.items()
        }
        for name, rows in table.buckets.items()
    }
    return BucketTable(buckets=buckets, frame_interval=table.frame_interval)


def test_bucket_ids_and_sizes_are_the_released_ones(case: Case) -> None:
    meta, _, table = case
    assert table.num_buckets == meta["config"]["num_bucket"] == len(meta["bucket_table"])
    for bucket, expected in zip(table.triples, meta["bucket_table"], strict=True):
        assert [bucket.num_frames, bucket.height, bucket.width] == expected["thw"]
        assert (bucket.resolution, bucket.aspect) == (expected["resolution"], expected["ar"])
        assert (bucket.keep_prob, bucket.batch_size) == (expected["keep_prob"], expected["batch_size"])
        assert table.pairs.index((bucket.resolution, bucket.num_frames)) == expected["hw_t_index"]


def test_choices_equal_the_reference_for_every_seed(case: Case) -> None:
    meta, tensors, table = case
    num_frames, height, width = (tensors[k] for k in "THW")
    for seed, expected in zip(meta["config"]["seeds"], tensors["choice_real_by_seed"], strict=True):
        choice = choose_buckets(table, num_frames, height, width, table.row_seeds(seed, 0, len(height)))
        np.testing.assert_array_equal(choice.index, expected)


@pytest.mark.parametrize("keep_barriers", [False, True])
def test_certain_choices_equal_the_reference(case: Case, keep_barriers: bool) -> None:
    _, tensors, table = case
    certain = with_keep_prob(table, keep_barriers=keep_barriers)
    columns = (tensors[k] for k in "THW")
    choice = choose_buckets(certain, *columns, np.zeros(len(tensors["T"]), dtype=np.int64))
    np.testing.assert_array_equal(choice.index, tensors["choice_nonzero1" if keep_barriers else "choice_all1"])


def test_choices_over_many_seeds_have_the_exact_distribution(case: Case) -> None:
    _, tensors, table = case
    num_rows, num_seeds = 200, 1000
    columns = [np.repeat(tensors[k][:num_rows], num_seeds) for k in "THW"]
    seeds = np.tile(1_000_003 * np.arange(num_seeds), num_rows)
    index = choose_buckets(table, *columns, seeds).index.reshape(num_rows, num_seeds)
    assert tensors["exact_row"].max() >= num_rows
    for row, bucket, prob in zip(*(tensors[f"exact_{k}"] for k in ("row", "bucket", "prob")), strict=True):
        if row < num_rows:
            assert np.mean(index[row] == bucket) == pytest.approx(prob, abs=5 * 0.5 / num_seeds**0.5)


GOLDEN_SEEDS = (42, 43, 44)
GOLDEN_STAGE2 = {
    (1, 1080, 1920): ("480p,1,0.56", "1024,1,0.57", "1080p,1,0.56"),
    (1, 512, 512): ("512,1,1.0", "256,1,1.0", "144p,1,1.00"),
    (1, 256, 256): ("144p,1,1.00", "256,1,1.0", "144p,1,1.00"),
    (300, 720, 1280): ("240p,64,0.56", "240p,64,0.56", "512,64,0.57"),
    (500, 1080, 1920): ("256,128,0.57", "240p,128,0.56", "240p,128,0.56"),
    (49, 240, 426): ("240p,16,0.56",) * 3,
    (48, 240, 426): (None,) * 3,
    (193, 640, 360): ("240p,64,1.78", "240p,64,1.78", "512,64,1.75"),
    (384, 240, 426): ("240p,64,0.56",) * 3,
    (385, 240, 426): ("256,128,0.57", "240p,128,0.56", "240p,128,0.56"),
    (60, 2160, 3840): ("480p,16,0.56", "480p,16,0.56", "240p,16,0.56"),
    (100, 120, 200): (None,) * 3,
}


@pytest.mark.parametrize("size", GOLDEN_STAGE2)
def test_published_choices_of_stage_2(size: tuple[int, int, int]) -> None:
    table = BucketTable(buckets=load_case("bucket_stage2")[0]["config"]["bucket_config"])
    found = [choose_bucket(table, *size, seed) for seed in GOLDEN_SEEDS]
    assert tuple(b and f"{b.resolution},{b.num_frames},{b.aspect}" for b in found) == GOLDEN_STAGE2[size]


@pytest.mark.parametrize(
    ("frame_counts", "num_buckets"),  # of the released video and image configurations
    [
        (
            {
                "240p": [16, 32, 64, 128],
                "256": [1],
                "512": [1],
                "480p": [1, 16, 32],
                "720p": [16, 32],
                "1024": [1],
                "1080p": [1],
            },
            290,
        ),
        ({"256": [1], "512": [1], "480p": [1], "1024": [1], "1080p": [1]}, 154),
    ],
)
def test_number_of_triples(frame_counts: dict[str, list[int]], num_buckets: int) -> None:
    table = BucketTable(buckets={name: dict.fromkeys(counts, (1.0, 1)) for name, counts in frame_counts.items()})
    assert table.num_buckets == num_buckets


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
@settings(max_examples=100, deadline=None)
def test_first_uniform_is_numpys(seeds: list[int]) -> None:
    expected = [np.random.default_rng(seed).random() for seed in seeds]
    assert first_uniform(np.array(seeds, dtype=np.uint64)).tolist() == expected


KEEP_PROBS = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0))
TABLES = st.builds(
    lambda buckets, frame_interval: BucketTable(
        buckets=buckets,
        frame_interval=frame_interval,
        custom_resolutions={"tiny": [(32, 56), (40, 40), (56, 32)], "twin": {"sizes": [(30, 30)], "num_pixels": 1600}},
    ),
    st.dictionaries(
        st.sampled_from([*RESOLUTIONS, "tiny", "twin"]),
        st.dictionaries(st.integers(1, 70), st.tuples(KEEP_PROBS, st.integers(1, 9)), max_size=5),
        min_size=1,
    ).filter(lambda buckets: any(buckets.values())),
    st.integers(1, 4),
)
ROWS = st.lists(
    st.tuples(
        st.one_of(st.just(1), st.integers(0, 300)),
        st.integers(0, 2400),
        st.integers(0, 4200),
        st.one_of(st.integers(0, 2**33), st.integers(0, 2**64 - 100)),
    ),
    min_size=1,
    max_size=12,
)


@given(TABLES, ROWS)
@settings(max_examples=150, deadline=None)
def test_vectorised_choice_equals_the_rule(table: BucketTable, rows: list[tuple[int, int, int, int]]) -> None:
    num_frames, height, width, seeds = (np.array(column, dtype=np.uint64) for column in zip(*rows, strict=True))
    choice = choose_buckets(table, num_frames, height, width, seeds)
    assert [choice.bucket(i) for i in range(len(rows))] == [choose_bucket(table, *row) for row in rows]


def test_choice_reports_sizes_and_unused_rows() -> None:
    table = BucketTable(buckets={"144p": {1: (1.0, 4), 16: (1.0, 2)}})
    choice = choose_buckets(table, [49, 48, 1], [144, 144, 256], [256, 256, 144], [0, 1, 2])
    assert choice.chosen.tolist() == [True, False, True]
    assert choice.sizes.tolist() == [[16, 144, 256], [0, 0, 0], [1, 256, 144]]
    assert choose_buckets(table, [], [], [], []).sizes.shape == (0, 3)


def test_a_chunk_boundary_changes_nothing() -> None:
    table = BucketTable(buckets={"256": {16: (0.5, 1)}, "144p": {16: (0.5, 1)}})
    n = 40_000
    columns = [np.full(n, value) for value in (60, 256, 256)]
    index = choose_buckets(table, *columns, np.arange(n)).index
    assert [int(index[i]) for i in (16383, 16384, 32768)] == [
        int(choose_buckets(table, [60], [256], [256], [i]).index[0]) for i in (16383, 16384, 32768)
    ]


def test_two_hundred_thousand_rows_per_second() -> None:
    meta, tensors = load_case("bucket_stage3")
    table = BucketTable(buckets=meta["config"]["bucket_config"])
    columns = [np.tile(tensors[k].numpy(), 50) for k in "THW"]
    seeds = table.row_seeds(42, 0, len(columns[0]))
    start_s = time.process_time()
    choose_buckets(table, *columns, seeds)
    assert len(seeds) / (time.process_time() - start_s) > 200_000


def with_exceptions(batch_sizes: object) -> dict[str, Any]:
    return {"buckets": {"144p": {1: (1.0, 8), 16: (1.0, 4)}}, "batch_sizes": batch_sizes}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"buckets": {"4K": {1: (1.0, 1)}}}, 'unknown resolution "4K" in the bucket table; allowed: 144p, 256'),
        ({"buckets": {"144p": {16: (1.5, 1)}}}, "144p x 16 frames: keep probability 1.5 is outside 0 to 1"),
        ({"buckets": {"144p": {16: (float("nan"), 1)}}}, "keep probability nan is outside 0 to 1"),
        ({"buckets": {"144p": {16: (0.5, None)}}}, "a batch size is missing"),
        ({"buckets": {"144p": {16: (0.5, 0)}}}, "batch size 0 must be at least 1"),
        ({"buckets": {"144p": {0: (0.5, 1)}}}, "144p x 0 frames: the frame count must be at least 1"),
        ({"buckets": {}}, "the bucket table is empty"),
        ({"buckets": {"144p": {}}}, "the bucket table is empty"),
        ({"buckets": {"144p": {1: (1.0, 1)}}, "frame_interval": 0}, "greater than or equal to 1"),
        ({"buckets": {"144p": {1: (1.0, 1)}}, "custom_resolutions": {"144p": [(8, 8)]}}, "name of a built-in one"),
        (
            with_exceptions({"256": {1: {"1.0": 2}}}),
            'batch_sizes: no resolution "256" in the bucket table; it has 144p',
        ),
        (with_exceptions({"144p": {8: {"1.00": 2}}}), "144p x 8 frames is no bucket; the table has 1, 16 frames there"),
        (with_exceptions({"144p": {16: {"1.0": 2}}}), '144p x 16 frames has no aspect "1.0"; it has 0.38, .*, 1.00, '),
        (with_exceptions({"144p": {16: {"1.00": 0}}}), 'aspect "1.00": batch size 0 must be at least 1'),
        (with_exceptions({"144p": {16: {1.5: 2}}}), "aspect 1.5 is read as a number; write the key in quotes"),
    ],
)
def test_a_wrong_table_is_refused_with_a_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        BucketTable.model_validate(config)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (([1], [2], [3], [4, 5]), "differ in length"),
        (([1.5], [2], [3], [4]), "num_frames must be one dimension of integers"),
        (([1], [-2], [3], [4]), "height holds a negative number"),
        (([1], [2], [3], np.array([2**64 - 1], dtype=np.uint64)), "seeds must stay below"),
    ],
)
def test_wrong_columns_are_refused(columns: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        choose_buckets(BucketTable(buckets={"144p": {1: (1.0, 1)}}), *columns)


def test_table_survives_json_and_describes_itself() -> None:
    table = BucketTable(
        buckets={"tiny": {1: (1.0, 8), 8: (0.5, 4), 16: (0.0, None)}}, custom_resolutions={"tiny": [(32, 32)]}
    )
    assert BucketTable.model_validate_json(table.model_dump_json()) == table
    assert describe_buckets(table) == "tiny x 8 frames, tiny x 1 frame"


def test_an_aspect_may_have_its_own_batch_size() -> None:
    config: dict[str, Any] = {
        "buckets": {"tiny": {1: (1.0, 8), 8: (0.5, 4), 16: (0.0, None)}},
        "custom_resolutions": {"tiny": [(32, 32), (32, 48), (48, 32)]},
    }
    plain = BucketTable.model_validate(config)
    table = BucketTable.model_validate({**config, "batch_sizes": {"tiny": {8: {"0.67": 3}}}})
    sizes = {(b.num_frames, b.aspect): b.batch_size for b in table.triples}
    shared = {(b.num_frames, b.aspect): b.batch_size for b in plain.triples}
    assert sizes == {**shared, (8, "0.67"): 3} != shared
    assert BucketTable.model_validate_json(table.model_dump_json()) == table != plain


def test_a_table_without_exceptions_is_dumped_as_if_there_were_no_such_field() -> None:
    table = BucketTable(buckets={"144p": {1: (1.0, 1)}})
    assert list(table.model_dump()) == ["buckets", "frame_interval", "custom_resolutions"]
    assert "batch_sizes" not in table.model_dump_json()
