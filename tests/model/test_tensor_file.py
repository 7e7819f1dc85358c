import pytest
import torch
from safetensors.torch import load_file, save_file

from model.tensor_file import TensorFile

TENSORS = {
    "b.weight": torch.randn(3, 5),
    "a.weight": torch.randn(7, generator=torch.Generator().manual_seed(1)),
    "größe": torch.arange(4, dtype=torch.int64),
    "half": torch.randn(2, 3).bfloat16(),
    "flag": torch.tensor([True, False, True]),
    "step": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
    "turned": torch.randn(4, 6).T,
    "bytes": torch.arange(5, dtype=torch.uint8),
    "other": torch.randn(3).half(),
    "wide": torch.randn(2).double(),
    "short": torch.arange(3, dtype=torch.int32),
}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"more": 'with "quotes"'}])
def test_the_bytes_are_those_of_the_library(tmp_path, metadata):
    whole = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(whole, tmp_path / "theirs", metadata=metadata or {"format": "pt"})
    TensorFile(TENSORS, metadata).write_to(tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    loaded = load_file(tmp_path / "ours")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("step", [1, 7, 64, 1000, 1 << 20])
def test_any_range_can_be_read(tmp_path, step):
    file = TensorFile(TENSORS)
    file.write_to(tmp_path / "whole")
    pieces = [file.read(at, min(step, file.size_bytes - at)) for at in range(0, file.size_bytes, step)]
    assert b"".join(pieces) == (tmp_path / "whole").read_bytes()


def test_nothing_is_a_file_too(tmp_path):
    TensorFile({}).write_to(tmp_path / "nothing")
    assert load_file(tmp_path / "nothing") == {}
