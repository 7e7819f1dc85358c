"""Prefixes that appear at once, describe themselves, and are refused when damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import BaseModel

from components import manifest, store
from components.errors import KinoflowError
from components.manifest import Manifest, ManifestError
from tests.conftest import S3Server


class Config(BaseModel):
    threshold: float = 3.0
    name: str = "ü"


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run" / "thing")
    server: S3Server = request.getfixturevalue("s3_server")
    return server.bucket() + "/run/thing"


def _publish(out: str, files: dict[str, bytes], config: Config | None = None, **inputs: str) -> Manifest:
    with manifest.publish(out, "thing", config=config or Config(), inputs=inputs) as publication:
        for name, data in files.items():
            path = publication.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        publication.facts["count"] = len(files)
        publication.annotations["run"] = "here"
    assert publication.manifest is not None
    return publication.manifest


def test_a_published_prefix_can_be_loaded_verified_and_fetched(out: str, tmp_path: Path) -> None:
    made = _publish(out, {"a.bin": b"one", "deep/b.bin": b"two"}, source="123")
    loaded = manifest.load(out)
    assert loaded == made
    assert loaded.kind == "thing"
    assert loaded.inputs == {"source": "123"}
    assert loaded.facts == {"count": 2}
    assert loaded.files["a.bin"].sha256 == hashlib.sha256(b"one").hexdigest()
    assert manifest.verify(out) == []
    manifest.fetch(out, tmp_path / "copy", kind="thing")
    assert (tmp_path / "copy/deep/b.bin").read_bytes() == b"two"
    manifest.fetch(out, tmp_path / "part", ["a.bin"])
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["a.bin"]


def test_nothing_is_visible_when_the_body_fails(out: str) -> None:
    with pytest.raises(RuntimeError), manifest.publish(out, "thing", config={}, inputs={}) as publication:
        (publication.directory / "a").write_bytes(b"half")
        raise RuntimeError
    assert store.list_objects(out) == []
    with pytest.raises(ManifestError, match="Nothing is published"):
        manifest.load(out)


def test_an_older_output_survives_a_failed_body(out: str) -> None:
    made = _publish(out, {"a": b"old"})
    with pytest.raises(RuntimeError), manifest.publish(out, "thing", config={}, inputs={}):
        raise RuntimeError
    assert manifest.load(out) == made
    assert manifest.verify(out) == []


def test_publishing_again_replaces_the_files_of_the_former_output_and_no_others(out: str) -> None:
    _publish(out, {"a": b"old", "gone": b"old"})
    store.write_bytes(store.join(out, "somebody/elses"), b"precious")
    _publish(out, {"a": b"new"})
    assert [item.key for item in store.list_objects(out)] == ["a", "manifest.json", "somebody/elses"]
    assert manifest.verify(out) == []


def test_publishing_into_a_used_folder_deletes_nothing(out: str) -> None:
    store.write_bytes(store.join(out, "holiday.mp4"), b"precious")
    _publish(out, {"a": b"new"})
    assert store.read_bytes(store.join(out, "holiday.mp4")) == b"precious"


def test_reusable_only_for_the_same_work(out: str) -> None:
    assert manifest.reusable(out, "thing", config=Config(), inputs={"x": "1"}) is None
    made = _publish(out, {"a": b"data"}, x="1", b="2")
    same = {"b": "2", "x": "1"}
    assert manifest.reusable(out, "thing", config=Config(), inputs=same) == made
    assert manifest.reusable(out, "other", config=Config(), inputs=same) is None
    assert manifest.reusable(out, "thing", config=Config(threshold=2), inputs=same) is None
    assert manifest.reusable(out, "thing", config=Config(), inputs={"b": "2", "x": "0"}) is None
    store.write_bytes(store.join(out, "a"), b"cut")
    assert manifest.reusable(out, "thing", config=Config(), inputs=same) is None


def test_damage_is_named(out: str, tmp_path: Path) -> None:
    _publish(out, {"a": b"data", "b": b"data", "c": b"data"})
    store.write_bytes(store.join(out, "a"), b"dada")
    store.delete(store.join(out, "b"))
    faults = manifest.verify(out)
    assert len(faults) == 2
    assert "/a does not match" in faults[0]
    assert "/b is missing" in faults[1]
    with pytest.raises(ManifestError, match="/a does not match"):
        manifest.fetch(out, tmp_path / "copy")
    manifest.fetch(out, tmp_path / "copy", ["c"])


def test_what_is_not_there_is_refused(out: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="run the step that makes it"):
        manifest.fetch(out, tmp_path)
    _publish(out, {"a": b"data"})
    with pytest.raises(ManifestError, match="'thing', not 'videos'"):
        manifest.fetch(out, tmp_path, kind="videos")
    with pytest.raises(ManifestError, match="no file 'b'"):
        manifest.fetch(out, tmp_path, ["b"])


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"kind": 3}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, text: bytes) -> None:
    (tmp_path / manifest.NAME).write_bytes(text)
    with pytest.raises(ManifestError, match=r"manifest\.json is damaged"):
        manifest.load(str(tmp_path))
    assert manifest.reusable(str(tmp_path), "thing", config={}, inputs={}) is None


def test_a_manifest_cannot_name_files_outside_its_prefix(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    _publish(out, {"a": b"data"})
    text = store.read_bytes(store.join(out, manifest.NAME)).replace(b'"a"', b'"../../a"')
    store.write_bytes(store.join(out, manifest.NAME), text)
    with pytest.raises(KinoflowError, match="refused"):
        manifest.fetch(out, tmp_path / "copy")


def test_annotations_do_not_change_the_digest(tmp_path: Path) -> None:
    first = _publish(str(tmp_path / "x"), {"a": b"data"})
    second = first.model_copy(update={"annotations": {"run": "elsewhere"}})
    third = first.model_copy(update={"facts": {"count": 7}})
    assert first.digest == second.digest != third.digest


def test_digests_are_canonical() -> None:
    assert manifest.digest_of({"b": 1, "a": [1.5, None]}) == manifest.digest_of({"a": [1.5, None], "b": 1})
    assert manifest.digest_of(Config()) == manifest.digest_of({"name": "ü", "threshold": 3.0})
    assert manifest.digest_of(Config()) != manifest.digest_of(Config(name="u"))
