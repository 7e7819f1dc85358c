"""Damaged files through ingest and curate: each has its row and its reason, and nothing ends."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import polars as pl
import pytest

from components import manifest, tables
from components.config import CurateConfig, IngestConfig
from components.curate import curate
from components.errors import KinoflowError
from components.ingest import ingest
from components.ingest.archives import list_members
from tests.fuzz.damage import damaged, write_seeds


def through_both(folder: Path, root: Path, workers: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The videos and the clips of a folder, with what the ledgers say checked against the files that are there."""
    videos, objects, out = str(root / "ingest"), str(root / "objects"), str(root / "curate")
    report = ingest(IngestConfig(max_failed_share=1.0), str(folder), objects, videos)
    config = CurateConfig.model_validate(
        {"captions": {"required": False}, "max_failed_share": 1.0, "workers": workers, "rules": {"min_motion": 0.0}}
    )
    counts = curate(config, videos, objects, out)
    for uri in (videos, out):
        manifest.fetch(uri, root / "copy")
    table = tables.read(root / "copy" / "videos.parquet", tables.VIDEOS)
    clips = tables.read(root / "copy" / "clips.parquet", tables.CLIPS)
    names = sorted(path.name for path in folder.iterdir())
    assert table["path"].to_list() == names
    assert report.total == report.ingested + report.rejected == counts.sources == len(names)
    assert set(clips["source_id"]) == set(table["source_id"])
    for rows in (table, clips):
        without = rows.filter(~pl.col("outcome").is_in(["ingested", "kept"]))
        assert without["reason"].null_count() == without["detail"].null_count() == 0
    return table, clips


def write_corpus(folder: Path, root: Path, count: int, seed: int) -> None:
    seeds = write_seeds(root / "seeds")
    folder.mkdir()
    for path in seeds:
        shutil.copy(path, folder / f"whole-{path.name}")
    for name, data in damaged(seeds, count, seed):
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("seed", [1])
def test_some_damaged_files(tmp_path: Path, seed: int) -> None:
    write_corpus(tmp_path / "in", tmp_path, 40, seed)
    table, _ = through_both(tmp_path / "in", tmp_path / "run", workers=1)
    whole = {row["path"]: row["reason"] for row in table.iter_rows(named=True) if row["path"].startswith("whole-")}
    assert whole.pop("whole-sound.wav") == "not_media"
    assert set(whole.values()) == {None}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_damaged_files(tmp_path: Path, seed: int) -> None:
    write_corpus(tmp_path / "in", tmp_path, 500, seed)
    through_both(tmp_path / "in", tmp_path / "run", workers=2)


def test_damaged_archives_end_nothing(tmp_path: Path) -> None:
    seeds = [path for path in write_seeds(tmp_path / "seeds") if path.suffix in (".jpg", ".mp4", ".wav")]
    with tarfile.open(tmp_path / "whole.tar", "w") as archive:
        for path in seeds:
            archive.add(path, path.name)
            (tmp_path / "caption").write_text("a caption")
            archive.add(tmp_path / "caption", f"{path.stem}.txt")
    for number, (_, data) in enumerate(damaged([tmp_path / "whole.tar"], 150, seed=4)):
        path = tmp_path / "damaged.tar"
        path.write_bytes(data)
        members, damage = list_members(path, 1 << 20)
        assert members or damage is not None, number
    (tmp_path / "in").mkdir()
    shutil.copy(tmp_path / "whole.tar", tmp_path / "in")
    for number, (_, data) in enumerate(damaged([tmp_path / "whole.tar"], 20, seed=5)):
        (tmp_path / "in" / f"{number:02d}.tar").write_bytes(data)
    ingest(IngestConfig(max_failed_share=1.0), str(tmp_path / "in"), str(tmp_path / "objects"), str(tmp_path / "out"))
    manifest.fetch(str(tmp_path / "out"), tmp_path / "copy")
    table = tables.read(tmp_path / "copy" / "videos.parquet", tables.VIDEOS)
    assert set(table["path"].str.split("/").list.first()) == {path.name for path in (tmp_path / "in").iterdir()}


def test_only_damaged_files_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, data in damaged([path for path in write_seeds(tmp_path / "seeds") if path.suffix == ".mp4"], 5, seed=6):
        (tmp_path / "in" / name).write_bytes(data[:100])
    with pytest.raises(KinoflowError, match=r"5 of 5 files .* cannot be used"):
        ingest(IngestConfig(), str(tmp_path / "in"), str(tmp_path / "objects"), str(tmp_path / "out"))
