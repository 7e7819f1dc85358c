"""Weights in and out of a store, and a stage that starts from them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from components import manifest
from components.errors import KinoflowError
from components.train.checkpoints import KIND as CHECKPOINT
from components.weights import KIND, export_weights, import_weights, load_into
from model.checkpoint import save_checkpoint
from model.stdit2 import STDiT2
from model.trainer import Trainer
from tests.conftest import S3Server
from tests.model.tiny_training import CONFIG, fresh_network, options, trained

FILES = ("config.json", "model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    save_file(fresh_network().state_dict(), folder / "model.safetensors", metadata={"format": "pt", "of": "elsewhere"})
    (folder / "config.json").write_text(json.dumps(CONFIG.to_hub_dict() | {"torch_dtype": "float32"}))
    return folder


def test_a_folder_comes_back_byte_for_byte(folder: Path, s3_server: S3Server, tmp_path: Path) -> None:
    uri = f"{s3_server.bucket()}/weights"
    published = import_weights(str(folder), uri)
    assert (published.kind, published.facts["layout"]) == (KIND, "stdit2")
    assert published.facts["tensors"] == len(fresh_network().state_dict())
    assert manifest.verify(uri) == []
    export_weights(uri, str(tmp_path))
    assert [(tmp_path / name).read_bytes() for name in FILES] == [(folder / name).read_bytes() for name in FILES]
    import_weights(uri, str(tmp_path / "again"))
    assert manifest.load(str(tmp_path / "again")).files == published.files


def test_a_checkpoint_gives_either_of_its_weights(tmp_path: Path) -> None:
    state = trained(Trainer(fresh_network(), options(steps=2)))[1][-1]
    uri = str(tmp_path / "step-00000002")
    with manifest.publish(uri, CHECKPOINT, config={}, inputs={}) as publication:
        save_checkpoint(publication.directory, state)
    for use_ema, expected in ((False, state.weights), (True, state.ema)):
        out = tmp_path / f"exported-{use_ema}"
        export_weights(uri, str(out), use_ema=use_ema)
        assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
        stored = load_file(out / "model.safetensors")
        assert stored.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in stored.items())


def test_a_network_starts_from_them(folder: Path, tmp_path: Path) -> None:
    import_weights(str(folder), str(tmp_path / "w"))
    network = STDiT2(CONFIG)
    load_into(network, str(tmp_path / "w"), tmp_path / "scratch")
    assert all(torch.equal(t, network.state_dict()[name]) for name, t in fresh_network().state_dict().items())
    with pytest.raises(KinoflowError, match=r"Training cannot start from .*depth 2"):
        load_into(STDiT2(CONFIG.model_copy(update={"depth": 1})), str(tmp_path / "w"), tmp_path / "other")


def test_mistakes_are_sentences(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KinoflowError, match="does not exist"):
        import_weights(str(tmp_path / "nowhere"), str(tmp_path / "w"))
    (tmp_path / "old.pth").write_bytes(b"")
    with pytest.raises(KinoflowError, match="is a pickle"):
        import_weights(str(tmp_path / "old.pth"), str(tmp_path / "w"))
    import_weights(str(folder), str(tmp_path / "w"))
    with pytest.raises(KinoflowError, match=r"holds no ema\.safetensors"):
        export_weights(str(tmp_path / "w"), str(tmp_path / "out"), use_ema=True)
