"""What `gc` removes and, more important, what it leaves."""

import json
import os
import time
from pathlib import Path

import pytest

from components import manifest, store
from components.collect import Retention, Survey, remove, survey
from components.errors import KinoflowError
from components.layout import ANALYSED
from components.manifest import Manifest
from components.store import BytesContent, parts

NOW = Retention(keep_last=1, grace_h=0)
DAYS_AGO = time.time() - 3 * 24 * 3600


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "runs") if request.param == "local" else request.getfixturevalue("s3_server").bucket() + "/r"


def publish(uri: str, kind: str = "checkpoint", *names: str, **inputs: str) -> Manifest:
    files = {name: BytesContent(name.encode() * 10) for name in names or ("model.safetensors",)}
    return manifest.publish_files(uri, kind, files, config={}, inputs=inputs, facts={"at": uri}, annotations={})


def checkpoints(stage: str, *steps: int) -> list[Manifest]:
    return [publish(f"{stage}/step-{step:08d}", data="d") for step in steps]


def steps_of(stage: str) -> list[int]:
    folders = {item.key.split("/")[0] for item in store.list_objects(stage)}
    return sorted(int(folder.removeprefix("step-")) for folder in folders if folder.startswith("step-"))


def collect(root: str, retention: Retention = NOW) -> Survey:
    found = survey(root, retention)
    remove(found.rubbish)
    return found


def kinds(found: Survey) -> list[str]:
    return sorted(item.what for item in found.rubbish)


def test_superseded_checkpoints_go_and_used_ones_stay(root: str) -> None:
    stage = f"{root}/a/stage1"
    made = checkpoints(stage, 10, 20, 30, 40, 50, 60)
    checkpoints(f"{root}/a/stage2", 5)
    publish(f"{root}/a/stage2/step-00000009", parent=made[1].digest)  # a later stage
    publish(f"{root}/a/evaluate", "evaluation", "metrics.json", checkpoint=made[2].digest)
    report = {"checkpoint": f"{stage}/step-00000040", "steps": 40}
    store.write_bytes(f"{root}/b/stage7/report.json", json.dumps(report).encode())
    manifest.pin(f"{stage}/step-00000010", "models:/kinoflow@champion")
    expected = survey(root, NOW)
    assert steps_of(stage) == [10, 20, 30, 40, 50, 60], "a survey removes nothing"
    found = collect(root)
    assert found == expected
    assert [(item.what, item.uri) for item in found.rubbish] == [("superseded checkpoint", f"{stage}/step-00000050")]
    assert found.rubbish[0].size_bytes > 170
    assert steps_of(stage) == [10, 20, 30, 40, 60]
    assert found.kept[f"{stage}/step-00000010"] == "something was made from it"
    assert found.kept[f"{stage}/step-00000020"] == "named by another output or a report"
    assert found.kept[f"{stage}/step-00000060"] == "among the newest 1"
    assert all(manifest.verify(uri) == [] for uri in found.kept)
    assert collect(root).rubbish == []


def test_every_so_many_steps_and_the_newest_stay(root: str) -> None:
    checkpoints(f"{root}/stage1", 10, 20, 30, 40, 50)
    collect(root, Retention(keep_last=2, keep_every=20))
    assert steps_of(f"{root}/stage1") == [20, 40, 50]


def test_the_last_whole_checkpoint_of_a_stage_stays(root: str) -> None:
    checkpoints(f"{root}/stage1", 10, 20, 30)
    store.write_bytes(f"{root}/stage1/step-00000030/model.safetensors", b"as long as it has been".ljust(170))
    found = collect(root)
    assert steps_of(f"{root}/stage1") == [20, 30]
    assert "step-00000030/model.safetensors does not match" in found.faults[0]
    assert "last whole one" in found.kept[f"{root}/stage1/step-00000020"]
    store.delete(f"{root}/stage1/step-00000020/model.safetensors")
    assert collect(root).rubbish == []
    assert steps_of(f"{root}/stage1") == [20, 30]


def test_checkpoints_of_another_configuration_are_no_newer_ones(root: str) -> None:
    checkpoints(f"{root}/stage1", 10, 20)
    for step in (90, 100):
        publish(f"{root}/stage1/step-{step:08d}", data="other")
    collect(root)
    assert steps_of(f"{root}/stage1") == [20, 100]


def test_half_written_outputs_go_once_their_writer_is_silent(root: str) -> None:
    checkpoints(f"{root}/stage1", 10)
    manifest.announce(f"{root}/bucket", "dataset", ["latents/00000.safetensors", "index.parquet"])
    store.write_bytes(f"{root}/bucket/latents/00000.safetensors", b"1" * 100)
    store.write_bytes(f"{root}/bucket/holiday.mp4", b"precious")
    store.write_bytes(f"{root}/stage1/step-00000020/model.safetensors", b"killed while it was pruned")
    store.write_bytes(f"{root}/stage1/step-00000020/mine.txt", b"precious")
    store.write_bytes(f"{root}/pictures/step-00000001/model.safetensors", b"somebody else's")
    assert collect(root, Retention()).rubbish == [], "they may still be written"
    assert kinds(collect(root)) == ["half-written output", "half-written output"]
    assert [item.key for item in store.list_objects(root)] == [
        "bucket/holiday.mp4", "pictures/step-00000001/model.safetensors", "stage1/step-00000010/manifest.json",
        "stage1/step-00000010/model.safetensors", "stage1/step-00000020/mine.txt",
    ]  # fmt: skip


def test_numbered_files_that_no_manifest_lists_go(root: str) -> None:
    publish(f"{root}/bucket", "dataset", "latents/00000.safetensors", "index.parquet")
    for name in ("latents/00007.safetensors", "notes/00007.txt", "other.parquet"):
        store.write_bytes(f"{root}/bucket/{name}", b"x")
    [item] = collect(root).rubbish
    assert (item.what, item.keys) == ("file of nothing", ("latents/00007.safetensors",))
    assert manifest.verify(f"{root}/bucket") == []


def test_begun_uploads_go(s3_server, monkeypatch) -> None:
    root = s3_server.bucket()
    checkpoints(f"{root}/stage1", 10)

    class Dying:
        size_bytes = 2 * parts.PART_BYTES

        def read(self, offset: int, size: int) -> bytes:
            if offset:
                raise ZeroDivisionError
            return bytes(size)

    with pytest.raises(ZeroDivisionError):
        store.write(f"{root}/stage1/step-00000020/model.safetensors", Dying())
    assert collect(root, Retention()).rubbish == []
    assert kinds(collect(root)) == ["begun upload"]
    assert store.pending_uploads(root) == []


def test_temporary_files_and_empty_folders_go(tmp_path: Path) -> None:
    checkpoints(f"{tmp_path}/stage1", 10, 20)
    left = tmp_path / "stage1" / "step-00000020" / ".model.safetensors.ab12cd_x"
    left.write_bytes(b"half")
    foreign = tmp_path / ".bashrc.ab12cd_x"
    foreign.write_bytes(b"mine")
    for path in (left, foreign):
        os.utime(path, (DAYS_AGO, DAYS_AGO))
    assert kinds(collect(str(tmp_path), Retention(keep_last=1))) == ["superseded checkpoint", "temporary file"]
    assert foreign.exists() and not left.exists()
    assert sorted(path.name for path in (tmp_path / "stage1").iterdir()) == ["step-00000020"]


@pytest.mark.parametrize("there", [{}, {"a.txt": b"x"}, {"manifest.json": b'{"name": "an extension of a browser"}'}])
def test_a_root_of_somebody_else_is_refused(tmp_path: Path, there: dict[str, bytes]) -> None:
    for name, data in there.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(KinoflowError, match="no root of this program's outputs"):
        survey(str(tmp_path), NOW)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == there


def test_measures_go_when_no_curation_was_made_with_them(root: str) -> None:
    segments = {way: f"{root}/{ANALYSED}/{way * 32}/{way * 64}.parquet" for way in "abc"}
    for uri in segments.values():
        store.write_bytes(uri, b"rows")
    foreign = f"{root}/{ANALYSED}/{'c' * 32}/notes.txt"
    store.write_bytes(foreign, b"somebody else's")
    clips = {"clips.parquet": BytesContent(b"clips")}
    used = {ANALYSED: f"{root}/{ANALYSED}/{'a' * 32}"}
    manifest.publish_files(f"{root}/r/curate", "clips", clips, config={}, inputs={}, facts={}, annotations=used)
    assert kinds(survey(root, Retention())) == []
    assert kinds(collect(root)) == ["measures of no curation"]
    assert [store.exists(segments[way]) for way in "abc"] == [True, False, True] and store.exists(foreign)
