from pathlib import Path

import numpy as np
import polars as pl
import pytest

from components import tables
from components.errors import KinoflowError
from components.plan_file import PlanFile, text_key
from tests.components.plans import plan_of

BATCHES = [
    [{"clip_id": "a", "start_frame": 3, "caption": "x"}, {"clip_id": "bb"}],
    [{"clip_id": "image", "num_frames": 1, "fps": 120.0, "resolution": "big", "aspect": "1.50", "height": 48}],
    [{"clip_id": "a", "start_frame": 3, "caption": "x", "epoch": 1}, {"clip_id": "bb", "start_frame": 1}],
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    plan_of(BATCHES, frame_interval=3).save(tmp_path / "plan.safetensors")
    return tmp_path / "plan.safetensors"


def test_a_batch_is_read_from_the_file(path: Path) -> None:
    plan = PlanFile.open(path)
    assert (len(plan), plan.num_samples, plan.num_clips, plan.num_epochs, plan.num_frames) == (3, 5, 3, 2, (1, 2))
    assert plan.samples_per_bucket == {"32px/2/1.00": 4, "big/1/1.50": 1}
    rows = plan.rows(0)
    assert dict(rows.schema) == dict(pl.Schema(tables.PLAN))
    assert rows["clip_id"].to_list() == ["a", "bb"]
    assert rows["slot"].to_list() == [0, 1]
    assert rows["latent_key"].to_list() == ["a@3+6/2x32x32", "bb@0+6/2x32x32"]
    assert rows["text_key"].to_list() == [text_key("x"), text_key("")]
    image = plan.rows(1).row(0, named=True)
    assert (image["resolution"], image["fps"], image["latent_key"]) == ("big", 120.0, "image@0+1/1x48x32")
    assert plan.shape(1).resolution == "big"
    assert plan.table().equals(pl.concat([plan.rows(batch) for batch in range(3)]))
    assert plan.table(1, 1).is_empty()
    for batch in (-1, 3):
        with pytest.raises(KinoflowError, match=f"holds 3 batches; there is no batch {batch}"):
            plan.rows(batch)


def test_columns_are_mapped_and_not_held(path: Path) -> None:
    plan = PlanFile.open(path)
    for column in (plan.clip, plan.start_frame, plan.offsets, plan.clips.ids.data, plan.clips.captions):
        owner = column
        while isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        assert not isinstance(owner, np.ndarray)  # the bytes belong to the mapped file
        assert not column.flags.writeable


def test_windows_and_keys_come_once(path: Path) -> None:
    plan = PlanFile.open(path)
    windows = plan.windows()
    assert sorted(windows["latent_key"]) == sorted({*plan.table()["latent_key"]})
    assert len(windows) == 4
    assert plan.keys(0, 1) == sorted(["a@3+6/2x32x32", "bb@0+6/2x32x32", text_key("x"), text_key("")])
    assert len(plan.keys()) == 6


def test_clips_that_do_not_occur_are_left_out_when_they_are_many(path: Path, tmp_path: Path) -> None:
    plan = PlanFile.open(path)
    same = {"frame_interval": 3, "sizes": np.array([1]), "bucket": np.array([1]), "epoch": np.array([0])}
    shapes = [bucket.shape for bucket in plan.buckets]
    for clip, held in (([2], 1), ([2, 0], 3)):
        sizes = np.array([len(clip)])
        found = PlanFile.build(
            shapes, plan.clips, **(same | {"sizes": sizes}), clip=np.array(clip), start_frame=np.zeros(len(clip), int)
        )
        assert (found.num_clips, len(found.clips.ids)) == (len(clip), held)
        assert found.rows(0)["clip_id"].to_list() == [plan.clips.ids[row] for row in clip]
        assert [bucket.shape for bucket in found.buckets] == [shapes[1]]


def test_the_same_plan_gives_the_same_bytes_and_an_empty_one_is_a_plan(path: Path, tmp_path: Path) -> None:
    PlanFile.open(path).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    plan_of([]).save(tmp_path / "empty")
    empty = PlanFile.open(tmp_path / "empty")
    assert (len(empty), empty.num_epochs, empty.windows().height, empty.keys()) == (0, 0, 0, [])
    assert dict(empty.table().schema) == dict(pl.Schema(tables.PLAN))


def test_what_is_no_plan_is_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    damaged = {
        "cut": content[:-1],
        "nothing": b"",
        "text": b"no plan at all, not even close",
        "other": content.replace(b"start_frame", b"start_from!"),
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(KinoflowError, match=f"{name} is not a readable plan"):
            PlanFile.open(tmp_path / name)
    with pytest.raises(KinoflowError, match="is not a readable plan"):
        PlanFile.open(tmp_path / "missing")
    (tmp_path / "newer").write_bytes(content.replace(b'format_version\\": 1', b'format_version\\": 2'))
    with pytest.raises(KinoflowError, match="has format 2, this version reads 1"):
        PlanFile.open(tmp_path / "newer")
