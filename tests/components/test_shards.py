from pathlib import Path

import pytest
import torch

from components.errors import KinoflowError
from components.shards import ShardReader, ShardWriter


def write(directory: Path, tensors: dict[str, torch.Tensor], shard_size_bytes: int = 1 << 20) -> None:
    with ShardWriter(directory, shard_size_bytes) as writer:
        for key, tensor in tensors.items():
            writer.add("text" if key.startswith("text:") else "latents", key, tensor)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"clip/{i} ü@0+48": torch.randn(4, i % 3 + 1, 5, 6, generator=generator) for i in range(20)}
    tensors |= {f"text:{i}": torch.randn(i + 1, 8, generator=generator) for i in range(5)}
    tensors["half"] = torch.ones(3, dtype=torch.bfloat16)
    tensors["transposed"] = torch.arange(6.0).reshape(2, 3).T
    write(tmp_path, tensors, shard_size_bytes=2000)
    assert len(list((tmp_path / "latents").iterdir())) > 5
    reader = ShardReader(tmp_path, max_open_files=2)
    assert reader.keys == set(tensors)
    for key, tensor in tensors.items():
        found = reader.get(key)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
        assert reader.shape(key) == tuple(tensor.shape)
    assert len(reader._open) == 2
    reader.close()
    assert torch.equal(reader.get("half"), tensors["half"])


def test_a_tensor_outlives_its_shard(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.arange(4.0)})
    reader = ShardReader(tmp_path)
    tensor = reader.get("a")
    reader.close()
    for path in (tmp_path / "latents").iterdir():
        path.unlink()
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_same_tensors_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2), "text:x": torch.ones(1, 4)}
    contents = []
    for name in ("one", "two"):
        write(tmp_path / name, tensors)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        contents.append({p.relative_to(tmp_path / name): p.read_bytes() for p in files})
    assert contents[0] == contents[1]


def test_the_same_key_twice_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    writer.add("latents", "a", torch.ones(1))
    with pytest.raises(ValueError, match="'a' is already in the shards"):
        writer.add("text", "a", torch.ones(1))


def test_no_index_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, shard_size_bytes=1) as writer:
        writer.add("latents", "a", torch.ones(1))
        raise RuntimeError
    with pytest.raises(KinoflowError, match="not a readable Parquet table"):
        ShardReader(tmp_path)


def test_an_empty_folder_of_shards(tmp_path: Path) -> None:
    write(tmp_path, {})
    assert ShardReader(tmp_path).keys == set()


def test_missing_and_damaged_shards_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.arange(1000.0), "b": torch.ones(1)})
    with pytest.raises(KinoflowError, match="holds no tensor 'c'"):
        ShardReader(tmp_path).get("c")
    shard = tmp_path / "latents" / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(KinoflowError, match=r"00000\.safetensors cannot be read"):
        ShardReader(tmp_path).get("a")
    shard.unlink()
    with pytest.raises(KinoflowError, match=r"00000\.safetensors cannot be read"):
        ShardReader(tmp_path).get("a")


def test_a_kind_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(KinoflowError, match="would leave its folder"):
        ShardWriter(tmp_path).add("../elsewhere", "a", torch.ones(1))
