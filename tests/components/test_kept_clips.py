import hashlib
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import tables
from components.config import Draws
from components.errors import KinoflowError
from components.kept_clips import Clips
from components.texts import Texts
from tests.components.bucket.test_plan import clip_table

IDS = st.lists(st.text(max_size=40), max_size=20, unique=True)
DRAWS = get_args(Draws)


def named(ids: list[str]) -> pl.DataFrame:
    return clip_table([(20, 32, 32)] * len(ids)).with_columns(clip_id=pl.Series(ids, dtype=pl.String))


@given(IDS, st.data())
@settings(max_examples=50, deadline=None)
def test_texts_come_back(ids: list[str], data: st.DataObject) -> None:
    texts = Texts.of(pl.Series(ids, dtype=pl.String))
    assert [texts[row] for row in range(len(texts))] == ids
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1))) if ids else []
    taken = texts.take(np.array(rows, dtype=np.int64))
    assert [taken[row] for row in range(len(taken))] == [ids[row] for row in rows]


@pytest.mark.parametrize("draws", DRAWS)
@given(IDS, st.integers(-5, 2**70))
@settings(max_examples=30, deadline=None)
def test_a_seed_depends_on_nothing_but_the_id_and_the_seed(draws: Draws, ids: list[str], seed: int) -> None:
    together = Clips.of(named(ids), seed, draws)
    seeds = {together.told.ids[row]: int(together.seeds[row]) for row in range(len(together))}
    assert len(set(seeds.values())) == len(ids)
    assert all(0 <= value < 2**61 for value in seeds.values())
    assert seeds == {clip_id: int(Clips.of(named([clip_id]), seed, draws).seeds[0]) for clip_id in ids}
    if ids:
        other = Clips.of(named(ids), seed + 1, draws)
        assert not (other.seeds == together.seeds).any()


def test_seeds_of_open_sora_draws_are_sha256() -> None:
    clips = Clips.of(named(["b", "a-ü"]), 42)
    expected = [hashlib.sha256(f"42/{clip_id}".encode()).digest()[:8] for clip_id in ("a-ü", "b")]
    assert clips.seeds.tolist() == [int.from_bytes(digest, "little") >> 3 for digest in expected]


def test_fast_seeds_are_spread_evenly() -> None:
    clips = Clips.of(named([f"{i:016x}-0001" for i in range(20_000)]), 1, "fast")
    for bit in range(61):
        assert abs(float((clips.seeds >> np.uint64(bit) & np.uint64(1)).mean()) - 0.5) < 0.02
    assert abs(float(clips.uniform(clips.seeds).mean()) - 0.5) < 0.01


@pytest.mark.parametrize("draws", DRAWS)
def test_clips_are_read_from_their_table(tmp_path: Path, draws: Draws) -> None:
    table = pl.concat([clip_table([(20 + i, 32, 48) for i in range(5)]), clip_table([(1, 32, 32)], "eval")])
    table = table.with_columns(clip_id=pl.Series([f"c{i}" for i in range(6)]))
    dropped = tables.frame([{"clip_id": "gone", "outcome": "dropped"}], tables.CLIPS)
    tables.write(pl.concat([table.reverse(), dropped]), tmp_path / "clips.parquet", tables.CLIPS)
    read = Clips.read(tmp_path / "clips.parquet", split="train", seed=3, draws=draws)
    given_ = Clips.of(table.filter(pl.col("split") == "train"), 3, draws)
    assert [read.told.ids[row] for row in range(len(read))] == [f"c{i}" for i in range(5)]
    np.testing.assert_array_equal(read.seeds, given_.seeds)
    np.testing.assert_array_equal(read.told.captions, given_.told.captions)
    assert read.sizes[0].tolist() == [20, 21, 22, 23, 24]
    with pytest.raises(KinoflowError, match="not a readable Parquet"):
        Clips.read(tmp_path / "nowhere.parquet", split="train", seed=3)
