"""Reading by ranges, ahead and on demand, from files and from a real S3 server."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from components import store
from components.errors import KinoflowError
from components.read_ahead import MAX_ITEMS_AHEAD, MAX_REQUEST_BYTES, TensorReader, _Slot, joined
from components.shards import LOCATIONS_FILE, Location, ShardIndex, ShardWriter
from tests.conftest import S3Server
from tests.slow_link import slow_link

COUNT, FLOATS = 200, 64
SIZE = 4 * FLOATS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 tensors of 256 bytes in shards of 20; each is filled with its number."""
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, shard_size_bytes=20 * SIZE) as writer:
        for number in range(COUNT):
            writer.add("latents", f"t{number}", torch.full((FLOATS,), float(number)))
    return folder


@pytest.fixture
def index(folder: Path) -> ShardIndex:
    return ShardIndex(folder / LOCATIONS_FILE, str(folder))


def located(index: ShardIndex, numbers: Sequence[int]) -> list[Location]:
    return index.locations([f"t{number}" for number in numbers])


def values(tensors: Sequence[torch.Tensor]) -> list[int]:
    assert all(bool((tensor == tensor[0]).all()) for tensor in tensors)
    return [int(tensor[0]) for tensor in tensors]


def drained(reader: TensorReader[int]) -> Iterator[tuple[int, list[int]]]:
    while (item := reader.next()) is not None:
        assert reader.held_bytes <= reader._ahead_bytes
        yield item[0], values(item[1])


def a_plan(items: int, size: int = 7) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(COUNT, (size,), generator=generator).tolist() for _ in range(items)]


@pytest.mark.parametrize("ahead_bytes", [1 << 20, 10 * SIZE, 1])
def test_items_come_in_order_in_bounded_memory(index: ShardIndex, ahead_bytes: int) -> None:
    """Also when there is room for one item and a half, or for none."""
    plan = a_plan(300)
    reader: TensorReader[int] = TensorReader(max(ahead_bytes, 7 * SIZE))
    reader.schedule((number, located(index, item)) for number, item in enumerate(plan))
    assert list(drained(reader)) == list(enumerate(plan))
    assert reader.next() is None
    reader.close()
    assert reader.held_bytes == 0


def test_an_item_larger_than_the_memory_is_read_nevertheless(index: ShardIndex) -> None:
    reader: TensorReader[int] = TensorReader(SIZE)
    reader.schedule(enumerate([located(index, range(50)), located(index, range(50, 100))]))
    assert [values(item[1]) for item in iter(reader.next, None)] == [list(range(50)), list(range(50, 100))]
    assert reader.held_bytes <= SIZE
    reader.close()


def test_what_was_read_is_kept_and_not_read_again(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(folder)
    index = ShardIndex(folder / LOCATIONS_FILE, str(moved))
    reader: TensorReader[int] = TensorReader(100 * SIZE)
    assert values(reader.get(located(index, range(100)))) == list(range(100))
    moved.unlink()
    assert values(reader.get(located(index, [99, 3, 3, 50]))) == [99, 3, 3, 50]
    with pytest.raises(KinoflowError, match=r"The shard .*moved/latents/00005\.safetensors is missing"):
        reader.get(located(index, [100]))
    moved.symlink_to(folder)
    assert values(reader.get(located(index, [100]))) == [100]  # what failed is tried again
    moved.unlink()
    assert values(reader.get(located(index, [3]))) == [3]
    with pytest.raises(KinoflowError, match="is missing"):  # unused for longest, so it made room for 100
        reader.get(located(index, [0]))
    reader.close()


def test_reading_ahead_stops_where_memory_ends(index: ShardIndex) -> None:
    taken = 0

    def items() -> Iterator[tuple[int, list[Location]]]:
        nonlocal taken
        for number in range(10_000):
            taken = number + 1
            yield number, located(index, [number % COUNT])

    reader: TensorReader[int] = TensorReader(20 * SIZE)
    reader.schedule(items())
    assert reader.next() is not None
    reader.schedule(items())  # joins the thread of the schedule before
    assert taken <= 23
    large: TensorReader[int] = TensorReader()
    large.schedule(items())
    assert large.next() is not None
    large.close()
    assert taken <= MAX_ITEMS_AHEAD + 3
    reader.close()


def test_a_new_schedule_replaces_the_old_one(index: ShardIndex) -> None:
    reader: TensorReader[int] = TensorReader(40 * SIZE)
    reader.schedule((number, located(index, [number])) for number in range(COUNT))
    assert reader.next() is not None
    reader.schedule((number, located(index, [number])) for number in (5, 4, 3))
    assert list(drained(reader)) == [(5, [5]), (4, [4]), (3, [3])]
    reader.close()


def test_close_ends_every_thread(index: ShardIndex) -> None:
    reader: TensorReader[int] = TensorReader(20 * SIZE)
    reader.schedule((number, located(index, range(number, number + 9))) for number in range(COUNT - 9))
    assert reader.next() is not None
    reader.close()
    reader.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("kinoflow-read")]


def test_errors_come_to_the_one_who_reads(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    (damaged / "latents").mkdir(parents=True)
    for shard in (folder / "latents").iterdir():
        content = bytearray(shard.read_bytes())
        if shard.name.startswith("00003"):
            content[-1] ^= 1
        (damaged / "latents" / shard.name).write_bytes(content[:-300] if shard.name.startswith("00007") else content)
    index = ShardIndex(folder / LOCATIONS_FILE, str(damaged))
    last_of_3 = max(located(index, range(60, 80)), key=lambda location: location.offset).key
    reader: TensorReader[int] = TensorReader()
    reader.schedule(enumerate([located(index, [1]), index.locations([last_of_3]), located(index, [2])]))
    first = reader.next()
    assert first is not None and values(first[1]) == [1]
    with pytest.raises(KinoflowError, match=rf"00003\.safetensors is damaged: {last_of_3} in it does not match"):
        reader.next()
    third = reader.next()
    assert third is not None and values(third[1]) == [2]
    with pytest.raises(KinoflowError, match=r"Could not read .*00007\.safetensors: it ends after"):
        reader.get(located(index, range(140, 160)))

    def failing() -> Iterator[tuple[int, list[Location]]]:
        yield 0, located(index, [1])
        raise KinoflowError("the plan is broken.")

    reader.schedule(failing())
    assert reader.next() is not None
    with pytest.raises(KinoflowError, match="the plan is broken"):
        reader.next()
    reader.close()


def test_neighbours_are_one_request() -> None:
    def slot(uri: str, offset: int, size: int = 1000) -> _Slot:
        return _Slot(Location("k", uri, offset, size, "U8", (size,), b""))

    def requests(slots: list[_Slot]) -> list[list[tuple[str, int]]]:
        return [[(s.location.uri, s.location.offset) for s in group] for group in joined(slots)]

    far = 10 << 20
    slots = [slot("b", 2000), slot("a", far), slot("a", 5000), slot("b", 0), slot("a", 7000)]
    assert requests(slots) == [[("b", 0), ("b", 2000)], [("a", far)], [("a", 5000), ("a", 7000)]]
    large = [slot("a", number * MAX_REQUEST_BYTES // 2, MAX_REQUEST_BYTES // 2) for number in range(4)]
    assert [len(group) for group in joined(large)] == [2, 2]


def test_from_a_store_far_away(folder: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = f"{s3_server.bucket()}/shards"
    for item in store.list_objects(str(folder)):
        store.upload(folder / item.key, f"{remote}/{item.key}")
    index = ShardIndex(folder / LOCATIONS_FILE, remote)
    plan = a_plan(40)
    with slow_link(s3_server.endpoint, 0.02) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        reader: TensorReader[int] = TensorReader(requests_in_flight=3)
        reader.schedule((number, located(index, item)) for number, item in enumerate(plan))
        assert list(drained(reader)) == list(enumerate(plan))
        reader.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    store.delete(f"{remote}/latents/00000.safetensors")
    reader = TensorReader()
    with pytest.raises(KinoflowError, match=r"The shard s3://.*/00000\.safetensors is missing"):
        reader.get(located(index, [0]))
    reader.close()
