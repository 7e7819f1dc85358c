"""Parts that several runs write and read: on local paths and on a real S3 server."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from components import manifest, store
from components.errors import KinoflowError
from components.shards import Location
from components.shared_tensors import (
    ANNOTATION,
    INDEX_FILE,
    Entry,
    SharedTensors,
    is_readable,
    open_index,
    publish_locations,
    write_index,
)
from tests.conftest import S3Server

Opener = Callable[..., SharedTensors]


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "latents")
    server: S3Server = request.getfixturevalue("s3_server")
    return f"{server.bucket()}/latents"


@pytest.fixture
def opened(root: str, tmp_path_factory: pytest.TempPathFactory) -> Opener:
    """Opens the tensors of an encoder as another run would: with a scratch folder of its own."""
    return lambda encoder="enc": SharedTensors(root, encoder, tmp_path_factory.mktemp("scratch"))


def add(shared: SharedTensors, numbers: list[int], part_size_bytes: int = 1 << 30) -> None:
    with shared.writer(1 << 10, part_size_bytes) as writer:
        for number in numbers:
            writer.add("latents", f"t{number}", torch.full((number % 5 + 1,), float(number)))


def get(location: Location) -> torch.Tensor:
    return location.tensor(store.read_range(location.uri, location.offset, location.size_bytes))


def parts(root: str) -> list[str]:
    return sorted(item.key for item in store.list_objects(root) if item.key.endswith(manifest.NAME))


def dataset(shared: SharedTensors, out: str, numbers: list[int]) -> manifest.Manifest:
    """A dataset of these tensors under names of its own."""
    entries = [Entry(f"own-{number}", f"t{number}", "latents") for number in numbers]
    with manifest.publish(out, "dataset", config={}, inputs={}) as publication:
        rows, shards = shared.rows([entry.shared_key for entry in entries])
        index = publication.directory / INDEX_FILE
        write_index(index, entries, rows)
        publication.annotations[ANNOTATION] = publish_locations(out, shared.root, entries, rows, shards, index)
    assert publication.manifest is not None
    return publication.manifest


def test_what_one_run_made_the_next_finds(root: str, opened: Opener) -> None:
    first = opened()
    assert first.has(["t0", "t1"]).tolist() == [False, False]
    add(first, [0, 1, 2])
    assert first.has(["t0", "t7", "t2"]).tolist() == [True, False, True]
    second = opened()
    assert second.has(["t0", "t7", "t2"]).tolist() == [True, False, True]
    assert [tensor.tolist() for tensor in second.read(["t2", "t0"])] == [[2.0] * 3, [0.0]]
    with pytest.raises(KinoflowError, match="holds no tensor 't7'"):
        second.rows(["t0", "t7"])
    with pytest.raises(KinoflowError, match="holds no tensor 't7'"):
        second.read(["t7"])
    assert not opened("another encoder").has(["t0"]).any()
    add(second, [])
    assert len(parts(root)) == 1


def test_a_dataset_reads_from_several_parts_and_its_digest_does_not_tell(
    root: str, opened: Opener, tmp_path: Path
) -> None:
    for numbers in ([5, 6], [0, 1, 2, 3, 4]):
        add(opened(), numbers)
    apart = dataset(opened(), f"{root}/apart", list(range(7)))
    add(opened("enc2"), list(range(9)))
    together = dataset(opened("enc2"), f"{root}/together", list(range(7)))
    assert apart.digest == together.digest
    for name in ("apart", "together"):
        index = open_index(f"{root}/{name}", tmp_path / name)
        for number, location in enumerate(index.locations([f"own-{number}" for number in range(7)])):
            assert get(location).tolist() == [float(number)] * (number % 5 + 1)
        assert len(index) == 7
    other = dataset(opened("enc2"), f"{root}/other", list(range(1, 8)))
    assert other.digest != together.digest


def test_large_outputs_are_published_in_parts_as_they_grow(root: str, opened: Opener) -> None:
    shared = opened()
    with pytest.raises(RuntimeError), shared.writer(1 << 10, 1 << 12) as writer:
        for number in range(25):
            writer.add("latents", f"t{number}", torch.full((128,), float(number)))
        raise RuntimeError
    assert len(parts(root)) == 3  # of eight tensors each; the last one was not in a full part
    assert opened().has([f"t{number}" for number in range(25)]).tolist() == [True] * 24 + [False]


def test_runs_at_the_same_time_do_not_disturb_each_other(root: str, opened: Opener, tmp_path: Path) -> None:
    def one_run(number: int) -> manifest.Manifest:
        shared = opened()
        wanted = list(range(number, number + 10))
        missing = [n for n, found in zip(wanted, shared.has([f"t{n}" for n in wanted]), strict=True) if not found]
        add(shared, missing)
        return dataset(shared, f"{root}/run-{number}", wanted)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one_run, range(4)))
    for run in range(4):
        index = open_index(f"{root}/run-{run}", tmp_path / str(run))
        for number, location in enumerate(index.locations([f"own-{n}" for n in range(run, run + 10)]), start=run):
            assert get(location).tolist() == [float(number)] * (number % 5 + 1)
    assert opened().has([f"t{n}" for n in range(13)]).all()


def test_a_part_that_is_not_whole_is_left_out_by_name(
    root: str, opened: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(opened(), [1, 2])
    made = dataset(opened(), f"{root}/data", [1, 2])
    assert is_readable(f"{root}/data", made, root, tmp_path)
    assert not is_readable(f"{root}/data", made, f"{root}/elsewhere", tmp_path)
    part = parts(f"{root}/enc")[0].split("/")[0]
    store.write_bytes(f"{root}/enc/{part}/latents/00000.safetensors", b"short")
    assert not opened().has(["t1"]).any()
    assert f"{root}/enc/{part}/latents/00000.safetensors is missing or has another size" in caplog.text
    assert not is_readable(f"{root}/data", made, root, tmp_path)
    store.delete(f"{root}/enc/{part}/locations.safetensors")
    assert not opened().has(["t1"]).any()
    assert "locations.safetensors is missing although the manifest lists it" in caplog.text
    store.delete(f"{root}/enc/{part}/manifest.json")  # as a killed run leaves it: nothing to warn of
    caplog.clear()
    assert not opened().has(["t1"]).any() and not caplog.text


def test_locations_of_another_dataset_are_refused(root: str, opened: Opener, tmp_path: Path) -> None:
    add(opened(), [1, 2])
    first = dataset(opened(), f"{root}/data", [1, 2])
    second = dataset(opened(), f"{root}/other", [1])
    uri = second.annotations[ANNOTATION]
    with manifest.publish(f"{root}/mixed", "dataset", config={}, inputs={}) as publication:
        index = manifest.fetch(f"{root}/data", publication.directory, [INDEX_FILE])
        assert index.digest == first.digest
        publication.annotations[ANNOTATION] = uri
    with pytest.raises(KinoflowError, match="belongs to another dataset"):
        open_index(f"{root}/mixed", tmp_path)
    with manifest.publish(f"{root}/bare", "dataset", config={}, inputs={}) as publication:
        pass
    with pytest.raises(KinoflowError, match="does not say where its tensors lie"):
        open_index(f"{root}/bare", tmp_path)
    store.delete(f"{uri}/manifest.json")
    with pytest.raises(KinoflowError, match=r"Where the tensors of .*/other lie is lost"):
        open_index(f"{root}/other", tmp_path)
