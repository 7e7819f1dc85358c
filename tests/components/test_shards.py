import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from components import store
from components.errors import KinoflowError
from components.shards import LOCATIONS_FILE, Location, ShardIndex, ShardWriter, hash_keys, write_locations


def write(directory: Path, tensors: dict[str, torch.Tensor], shard_size_bytes: int = 1 << 20) -> ShardIndex:
    with ShardWriter(directory, shard_size_bytes) as writer:
        for key, tensor in tensors.items():
            writer.add("text" if key.startswith("text:") else "latents", key, tensor)
    assert writer.size_bytes == sum(tensor.nbytes for tensor in tensors.values())
    return ShardIndex(directory / LOCATIONS_FILE, str(directory))


def get(location: Location) -> torch.Tensor:
    return location.tensor(store.read_range(location.uri, location.offset, location.size_bytes))


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"clip/{i} ü@0+48": torch.randn(4, i % 3 + 1, 5, 6, generator=generator) for i in range(20)}
    tensors |= {f"text:{i}": torch.randn(i + 1, 8, generator=generator) for i in range(5)}
    tensors["half"] = torch.ones(3, dtype=torch.bfloat16)
    tensors["transposed"] = torch.arange(6.0).reshape(2, 3).T
    tensors["one number"] = torch.tensor(7)
    tensors["nothing"] = torch.empty(0, 8)
    index = write(tmp_path, tensors, shard_size_bytes=2000)
    assert len(list((tmp_path / "latents").iterdir())) > 5
    assert len(index) == len(tensors)
    for location, (key, tensor) in zip(index.locations(list(tensors)), tensors.items(), strict=True):
        found = get(location)
        assert (location.key, location.shape, found.dtype) == (key, tuple(tensor.shape), tensor.dtype)
        assert torch.equal(found, tensor)
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert location.sha256 == hashlib.sha256(raw).digest()
    assert all((tmp_path / shard).stat().st_size >= end for shard, end in index.ends().items())


def test_shards_are_safetensors_that_say_what_they_hold(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.arange(4.0)})
    with safe_open(tmp_path / "latents" / "00000.safetensors", framework="pt") as shard:
        assert shard.get_tensor("a").tolist() == [0.0, 1.0, 2.0, 3.0]


def test_same_tensors_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2), "text:x": torch.ones(1, 4)}
    contents = []
    for name in ("one", "two"):
        write(tmp_path / name, tensors)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        contents.append({p.relative_to(tmp_path / name): p.read_bytes() for p in files})
    assert contents[0] == contents[1]


def test_a_key_is_found_among_many(tmp_path: Path) -> None:
    index = write(tmp_path, {f"k{i}": torch.tensor(float(i)) for i in range(3000)})
    asked = ["k2999", "no such key", "k0", "k17"]
    assert [number >= 0 for number in index.find(asked)] == [True, False, True, True]
    assert [float(get(location)) for location in index.locations(["k2999", "k0", "k17"])] == [2999.0, 0.0, 17.0]
    with pytest.raises(KinoflowError, match="holds no tensor 'no such key'"):
        index.locations(asked)


def test_half_of_a_hash_in_common(tmp_path: Path) -> None:
    """Two rows that only the second half tells apart: made here, as no such keys are known."""
    index = write(tmp_path, {"a": torch.tensor(1.0), "b": torch.tensor(2.0), "c": torch.tensor(3.0)})
    rows = index.rows(index.find(["a", "b", "c"]))
    high, low = hash_keys(["b"])
    rows["key_high"] = high[0]
    rows["key_low"] = (low[0] - 2, low[0], low[0] - 1)
    write_locations(tmp_path / "made", rows, index.shards)
    assert float(get(ShardIndex(tmp_path / "made", str(tmp_path)).locations(["b"])[0])) == 2.0
    rows["key_low"] = low[0]
    with pytest.raises(ValueError, match="the same key"):
        write_locations(tmp_path / "made", rows, index.shards)


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    writer.add("latents", "a", torch.ones(1))
    with pytest.raises(ValueError, match="'a' is already in the shards"):
        writer.add("text", "a", torch.ones(1))
    with pytest.raises(ValueError, match=r"'b' is torch\.complex64 of 1 dimensions"):
        writer.add("text", "b", torch.ones(1, dtype=torch.complex64))
    with pytest.raises(KinoflowError, match="would leave its folder"):
        writer.add("../elsewhere", "c", torch.ones(1))


def test_no_index_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, shard_size_bytes=1) as writer:
        writer.add("latents", "a", torch.ones(1))
        raise RuntimeError
    with pytest.raises(KinoflowError, match="not a readable index of shards"):
        ShardIndex(tmp_path / LOCATIONS_FILE, str(tmp_path))


def test_an_empty_folder_of_shards(tmp_path: Path) -> None:
    index = write(tmp_path, {})
    assert len(index) == 0 and index.ends() == {} and index.find(["a"]).tolist() == [-1]


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.arange(1000.0), "b": torch.ones(1)})
    path = tmp_path / LOCATIONS_FILE
    content = path.read_bytes()
    for damaged in (b"", content[:100], content[:-3], b"\xff" * len(content)):
        path.write_bytes(damaged)
        with pytest.raises(KinoflowError, match=r"locations\.safetensors is not a readable index"):
            ShardIndex(path, str(tmp_path))
    path.write_bytes(content.replace(b'\\"format_version\\": \\"2\\"', b'\\"format_version\\": \\"1\\"'))
    with pytest.raises(KinoflowError, match="has format 1, this version reads 2"):
        ShardIndex(path, str(tmp_path))


def test_other_bytes_than_were_written_are_refused(tmp_path: Path) -> None:
    location = write(tmp_path, {"a": torch.arange(1000.0)}).locations(["a"])[0]
    data = bytearray(store.read_range(location.uri, location.offset, location.size_bytes))
    data[17] ^= 1
    with pytest.raises(KinoflowError, match=r"00000\.safetensors is damaged: a in it does not match its SHA-256"):
        location.tensor(bytes(data))
