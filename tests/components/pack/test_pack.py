"""Packing: every kept clip in one row, the same bytes every time, readable by others, and by us at random."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from components import manifest, packed, store, tables
from components.errors import KinoflowError
from components.pack import PackReport, pack
from components.pack.clips import planned_cut
from components.pack_config import PackConfig
from components.packed import PackedClips
from components.takedown import Rules, Tombstone, beside, write
from components.takedown.tombstones import now
from components.video import decode_frames
from pipelines.cli import app
from tests.components.pack.conftest import SMALL, World
from tests.conftest import S3Server


def packed_into(world: World, out: Path | str, config: PackConfig = SMALL, skip: tuple[str, ...] = ()) -> PackReport:
    return pack(config, world.clips, world.objects, str(out), skip)


def index_of(out: Path | str) -> pl.DataFrame:
    return tables.read(Path(out) / packed.INDEX_FILE, packed.INDEX)


def files_of(out: Path | str) -> dict[str, bytes]:
    return {item.key: store.read_bytes(store.join(str(out), item.key)) for item in store.list_objects(str(out))}


@pytest.fixture(scope="module")
def out(made_once: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed")
    packed_into(made_once, path)
    return path


def test_every_kept_clip_is_in_one_row_and_the_ledger_adds_up(made_once: World, out: Path) -> None:
    report = packed_into(made_once, out)
    index = index_of(out)
    kept = [row for row in made_once.rows if row["outcome"] == "kept"]
    assert index["clip_id"].to_list() == sorted(row["clip_id"] for row in kept)
    assert (report.clips, report.packed, report.failed, report.skipped) == (6, 6, 0, 0)
    assert (report.copied, report.encoded, report.pictures) == (2, 2, 2)
    by_id = dict(index.select("clip_id", "method").iter_rows())
    assert (by_id["a" * 16 + "-0000"], by_id["a" * 16 + "-0001"], by_id["b" * 16 + "-0000"]) == (
        "copy",
        "copy",
        "encode",
    )
    assert report.shards == len(list((out / "shards").iterdir())) > 1
    assert report.dataset_digest == manifest.load(made_once.clips).digest == manifest.load(str(out)).inputs["clips"]
    assert manifest.verify(str(out)) == []
    assert {item.key for item in store.list_objects(str(out))} == {*manifest.load(str(out)).files, manifest.NAME}


def test_webdataset_reads_the_shards(made_once: World, out: Path) -> None:
    import webdataset

    shards = sorted(str(path) for path in (out / "shards").iterdir())
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    rows = {row["clip_id"]: row for row in made_once.rows}
    assert [sample["__key__"] for sample in samples] == index_of(out)["clip_id"].to_list()
    for sample in samples:
        row = rows[sample["__key__"]]
        assert {name for name in sample if not name.startswith("__")} <= {"mp4", "png", "jpg", "json", "txt"}
        told = json.loads(sample["json"])
        assert sample["txt"].decode() == told["caption"] == row["caption"]
        assert (told["source"], told["licence"], told["content_sha256"]) == ("made", "CC0-1.0", row["content_sha256"])
        assert (told["start_frame"], told["end_frame"]) == (row["start_frame"], row["end_frame"])
        assert told["scores"]["motion"] == 1.5 and told["scores"]["sharpness"] is None
    decoded = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("pil")
    assert next(sample["png"].size for sample in decoded if "png" in sample) == (56, 40)


def test_any_clip_is_read_at_random(made_once: World, out: Path) -> None:
    clips = PackedClips(str(out))
    assert len(clips) == 6
    for number in (5, 0, 3):
        clip = clips.read(number)
        assert clip.clip_id == clips.clip_ids[number] == clips.read(clip.clip_id).clip_id
        row = next(row for row in made_once.rows if row["clip_id"] == clip.clip_id)
        frames = list(clip.frames())
        assert len(frames) == row["num_frames"] and frames[0].shape == (row["height"], row["width"], 3)
        assert clip.caption == row["caption"] == clip.document["caption"]
    assert [clip.clip_id for clip in clips] == clips.clip_ids.to_list()
    with pytest.raises(KinoflowError, match="holds no clip 'nothing'"):
        clips.read("nothing")


def test_a_copied_clip_has_the_frames_of_its_source(made_once: World, out: Path) -> None:
    clip = PackedClips(str(out)).read("a" * 16 + "-0001")
    row = made_once.rows[1]
    source = list(decode_frames(Path(made_once.objects) / row["object_key"]))[row["start_frame"] : row["end_frame"]]
    assert (np.stack(list(clip.frames())) == np.stack(source)).all()


def test_clips_taken_down_are_skipped_without_packing_again(out: Path) -> None:
    gone = "a" * 16 + "-0000"
    for clips in (PackedClips(str(out), skip={gone}), PackedClips(str(out)).skipping([gone])):
        assert len(clips) == 5 and gone not in clips.clip_ids
        with pytest.raises(KinoflowError, match="skipped"):
            clips.read(gone)


def test_clips_taken_down_before_are_not_packed(made_once: World, tmp_path: Path) -> None:
    gone = "a" * 16 + "-0001"
    report = packed_into(made_once, tmp_path, skip=(gone, "unknown"))
    assert (report.packed, report.skipped, report.reasons) == (5, 1, {"taken_down": 1})
    assert index_of(tmp_path).filter(pl.col("clip_id") == gone)["outcome"].to_list() == ["skipped"]
    assert packed_into(made_once, tmp_path).packed == 6  # another dataset


def test_clips_that_tombstones_name_are_not_packed(world: World, tmp_path: Path) -> None:
    write(
        beside(world.objects),
        Tombstone(rules=Rules(paths=("b.avi",)), reason="asked for", by="them", at=now(), clip_ids=(), tables=()),
    )
    report = packed_into(world, tmp_path / "out")
    assert (report.packed, report.reasons) == (5, {"taken_down": 1})
    assert "b" * 16 + "-0000" not in PackedClips(str(tmp_path / "out")).clip_ids


def test_a_takedown_lists_the_shards_and_readers_pass_over_its_clips(world: World, tmp_path: Path) -> None:
    import webdataset

    root = world.clips.rpartition("/")[0]
    out = Path(root) / "packed"
    packed_into(world, out)
    before, index = files_of(out), index_of(out)
    assert PackedClips(str(out)).left_out == frozenset()
    gone = {f"{'a' * 16}-{number:04d}" for number in range(3)}
    arguments = ["takedown", "--path", "a.mp4", "--reason", "asked by its owner", "--root", root, "--json"]
    answer = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    shards = {each["uri"]: each["clips"] for each in answer["reach"]["touched"] if each["kind"] == "shard"}
    of_gone = index.filter(pl.col("clip_id").is_in(list(gone)))
    expected = {
        f"{out}/{packed.shard_name(shard)}": count for shard, count in of_gone["shard"].value_counts().iter_rows()
    }
    assert shards == expected and len(index["shard"].unique()) > len(shards)
    clips = PackedClips(str(out))
    assert set(clips.left_out) == gone and len(clips) == 3 and not set(clips.clip_ids) & gone
    assert [clip.clip_id for clip in clips] == sorted(set(index["clip_id"]) - gone)
    with pytest.raises(KinoflowError, match="is to be skipped"):
        clips.read(f"{'a' * 16}-0000")
    assert clips.skipping(["b" * 16 + "-0000"]).left_out == gone | {"b" * 16 + "-0000"}
    tars = sorted(str(path) for path in (out / "shards").iterdir())
    read = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    assert [
        sample["__key__"] for sample in read.select(lambda sample: sample["__key__"] not in clips.left_out)
    ] == list(clips.clip_ids)
    assert len(PackedClips(str(out), tombstones=False)) == 6 and files_of(out) == before
    # one that was written without knowledge of this table is asked by its rule
    write(
        beside(world.objects),
        Tombstone(rules=Rules(paths=("b.avi",)), reason="asked for", by="them", at=now(), clip_ids=(), tables=()),
    )
    assert set(PackedClips(str(out)).left_out) == gone | {"b" * 16 + "-0000"}


def test_the_shards_are_plain_tar_files_that_stay_in_their_folder(out: Path) -> None:
    for path in (out / "shards").iterdir():
        with tarfile.open(path) as shard:
            members = shard.getmembers()
            ids = [member.name.split(".")[0] for member in members]
            assert ids == sorted(ids) and all(ids.count(clip_id) == 3 for clip_id in ids)
            for member in members:
                assert member.isfile() and "/" not in member.name
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                assert (member.uname, member.gname) == ("", "")


def test_the_index_says_where_members_lie(out: Path) -> None:
    for row in index_of(out).iter_rows(named=True):
        shard = out / packed.shard_name(row["shard"])
        with tarfile.open(shard) as file:
            media = file.extractfile(f"{row['clip_id']}.{row['suffix']}")
            assert media is not None
            assert media.read() == store.read_range(str(shard), row["media_offset"], row["media_size_bytes"])


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_clips_give_the_same_bytes(workers: int, made_once: World, out: Path, tmp_path: Path) -> None:
    packed_into(made_once, tmp_path, SMALL.model_copy(update={"workers": workers}))
    assert files_of(tmp_path) == files_of(out)


def test_packing_again_does_nothing(made_once: World, out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    packed_into(made_once, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_a_smaller_dataset_takes_the_place_of_a_larger_one(made_once: World, tmp_path: Path) -> None:
    packed_into(made_once, tmp_path)
    (tmp_path / "shards" / "notes.txt").write_text("not ours", encoding="utf-8")
    packed_into(made_once, tmp_path, PackConfig(workers=1))
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["00000.tar", "notes.txt"]


def test_what_others_train_from_is_listed(out: Path) -> None:
    with (out / "dataset.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = pl.read_parquet(out / "dataset.parquet")
    assert list(rows[0])[:8] == ["path", "text", "num_frames", "height", "width", "aspect_ratio", "resolution", "fps"]
    assert table["path"].to_list() == [row["path"] for row in rows]
    assert table["text"].to_list() == [row["text"] for row in rows]
    names = set()
    for shard in (out / "shards").iterdir():
        with tarfile.open(shard) as file:
            names |= set(file.getnames())
    assert set(table["path"]) <= names
    first = table.row(0, named=True)
    assert (first["num_frames"], first["height"], first["width"], first["fps"]) == (24, 48, 64, 24.0)
    assert (first["aspect_ratio"], first["resolution"]) == (0.75, 3072)
    assert table.filter(pl.col("path").str.ends_with("png"))["fps"].to_list() == [None]


def test_sizes_and_rates_are_limited_as_open_sora_did(made_once: World, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"fps": 12.0, "short_side_px": 32})
    report = packed_into(made_once, tmp_path, config)
    assert (report.copied, report.encoded) == (0, 4)
    sizes = index_of(tmp_path).filter(pl.col("suffix") == "mp4").select("height", "width", "fps", "num_frames")
    assert sizes.rows()[0] == (32, 42, 12.0, 12)
    for clip in PackedClips(str(tmp_path)):
        frames = list(clip.frames())
        told = clip.document["packed"]
        assert (len(frames), *frames[0].shape[:2]) == (told["num_frames"], told["height"], told["width"])


@pytest.mark.parametrize(
    ("asked", "size", "fps"),
    [
        ({}, None, None),
        ({"fps": 30.0, "short_side_px": 720}, None, None),  # nothing is enlarged
        ({"fps": 30.0, "short_side_px": 720, "enlarge": True}, (720, 960), 30.0),
        ({"short_side_px": 30}, (30, 40), None),
        ({"fps": 10.0}, None, 10.0),
    ],
)
def test_limits(asked: dict[str, object], size: tuple[int, int] | None, fps: float | None, tmp_path: Path) -> None:
    row = {"clip_id": "a-0000", "start_frame": 0, "end_frame": 9, "fps": 24.0, "height": 48, "width": 64}
    cut = planned_cut(row, PackConfig.model_validate(asked), tmp_path)
    assert (cut.size, cut.out_fps) == (size, fps)


def test_a_clip_that_cannot_be_cut_is_a_row_with_a_reason(world: World, tmp_path: Path) -> None:
    a, b = world.rows[0]["object_key"], world.rows[3]["object_key"]
    world.rows[3]["end_frame"] = 40  # of 30
    (Path(world.objects) / a).unlink()
    picture = Path(world.objects) / world.rows[4]["object_key"]
    picture.write_bytes(picture.read_bytes()[:-9])
    world.publish()
    assert b
    report = packed_into(world, tmp_path / "out", SMALL.model_copy(update={"max_failed_share": 0.9}))
    assert (report.clips, report.packed, report.failed) == (6, 1, 5)
    assert report.reasons == {"damaged_object": 1, "decode_error": 1, "missing_object": 3}
    failed = index_of(tmp_path / "out").filter(pl.col("outcome") == "failed")
    assert failed["detail"].null_count() == 0 and failed["shard"].null_count() == 5
    assert len(PackedClips(str(tmp_path / "out"))) == 1
    with pytest.raises(KinoflowError, match=r"5 of 6 clips .* more than max_failed_share 0\.1"):
        packed_into(world, tmp_path / "other")
    assert not (tmp_path / "other" / manifest.NAME).exists()


@pytest.mark.parametrize("clip_id", ["../../etc/passwd", "a/b", "", "a.b", "-x", "a\nb"])
def test_a_name_that_leads_out_of_its_folder_is_refused(clip_id: str, world: World, tmp_path: Path) -> None:
    world.rows[0]["clip_id"] = clip_id
    world.publish()
    with pytest.raises(KinoflowError, match="cannot be the name of a file"):
        packed_into(world, tmp_path / "out")


def test_damage_is_told(world: World, tmp_path: Path) -> None:
    packed_into(world, tmp_path / "out")
    shard = tmp_path / "out" / packed.shard_name(0)
    data = bytearray(shard.read_bytes())
    row = index_of(tmp_path / "out").row(0, named=True)
    data[row["media_offset"] + 100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(KinoflowError, match=f"damaged: the clip {row['clip_id']} in it does not match"):
        PackedClips(str(tmp_path / "out")).read(0)


def test_nothing_kept_is_one_sentence(world: World, tmp_path: Path) -> None:
    for row in world.rows:
        row |= {"outcome": "dropped", "reason": "still"}
    world.publish()
    with pytest.raises(KinoflowError, match="keeps no clip"):
        packed_into(world, tmp_path / "out")


def test_over_s3_by_ranges(tmp_path: Path, s3_server: S3Server) -> None:
    from tests.components.pack.conftest import make_world

    world = make_world(s3_server.bucket(), tmp_path)
    out = f"{world.clips}-packed"
    report = packed_into(world, out)
    assert report.packed == 6 and manifest.verify(out) == []
    clips = PackedClips(out)
    assert len(list(clips.read("b" * 16 + "-0000").frames())) == 27


def test_a_killed_packing_goes_on_after_the_last_whole_shard(world: World, out: Path, tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_text(SMALL.model_dump_json(), encoding="utf-8")
    there = tmp_path / "out"
    command = [sys.executable, "-m", "components.pack", "--config", str(tmp_path / "pack.json"),
               "--clips", world.clips, "--objects", world.objects, "--out", str(there)]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(there.glob("parts/*/00000.parquet")):
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (there / manifest.NAME).exists()
    note = manifest.read_note(str(there))
    assert note is not None and packed.shard_name(0) in note.files
    first = there / packed.shard_name(0)
    before = first.stat().st_mtime_ns
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    assert PackReport.model_validate_json(shown.stdout).packed == 6
    assert first.stat().st_mtime_ns == before, "a finished shard is not made again"
    theirs, ours = files_of(out), files_of(there)
    assert {name: data for name, data in ours.items() if name != manifest.NAME} == {
        name: data for name, data in theirs.items() if name != manifest.NAME
    }
    assert manifest.load(str(there)).files == manifest.load(str(out)).files


def test_a_csv_that_polars_wrote_keeps_line_breaks_inside_quotes(out: Path) -> None:
    text = (out / "dataset.csv").read_text(encoding="utf-8")
    assert next(csv.DictReader(io.StringIO(text)))["text"] == 'clip 0 of "a",\nsaid twice'
