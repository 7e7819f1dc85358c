import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.manifest import sha256_file
from model.checkpoint import load_checkpoint, load_network, load_released, read_state, save_checkpoint
from model.config import STDiT2Config
from model.trainer import Trainer
from tests.model.tiny_training import CONFIG, fresh_network, make_batch, options, trained


@pytest.fixture(scope="module")
def state():
    return trained(Trainer(fresh_network(), options(steps=3)))[1][-1]


def test_what_is_saved_comes_back(state, tmp_path):
    save_checkpoint(tmp_path, state)
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == state.config and loaded.progress == state.progress
    assert loaded.progress.step == 3 and read_state(tmp_path) == state.progress
    for kind in ("weights", "ema", "optimizer"):
        ours, theirs = getattr(state, kind), getattr(loaded, kind)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "blocks.0.attn.qkv.weight.exp_avg_sq" in loaded.optimizer


def test_equal_tensors_give_equal_bytes_whatever_their_order(state, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    save_checkpoint(tmp_path, state)
    state.weights = dict(reversed(state.weights.items()))
    save_checkpoint(other, state)
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "config.json", "state.json"):
        assert sha256_file(tmp_path / name) == sha256_file(other / name)


def test_either_weights_make_a_network(state, tmp_path):
    save_checkpoint(tmp_path, state)
    averaged, trained_network = load_network(tmp_path), load_network(tmp_path, use_ema=False)
    assert not averaged.training
    name = "final_layer.linear.weight"
    assert torch.equal(trained_network.state_dict()[name], state.weights[name])
    assert torch.equal(averaged.state_dict()[name], state.ema[name])
    assert not torch.equal(state.ema[name], state.weights[name])
    # frozen values are the same in both
    assert torch.equal(state.ema["rope.freqs"], state.weights["rope.freqs"])


def released_folder(tmp_path, config=CONFIG, **changes):
    weights = {name: t.clone().contiguous() for name, t in fresh_network(config).state_dict().items()} | changes
    save_file({name: t for name, t in weights.items() if t is not None}, tmp_path / "model.safetensors")
    values = config.to_hub_dict() | {"torch_dtype": "float32", "transformers_version": "4.38.0"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


def test_a_released_folder_gives_the_same_outputs(tmp_path):
    network = load_released(released_folder(tmp_path, pos_embed=torch.zeros(1)))
    assert isinstance(network.config, STDiT2Config) and network.config == CONFIG
    batch = make_batch(0)
    with torch.no_grad():
        outputs = [
            n(batch.latents, torch.tensor([1, 500, 999]), batch.text_features[:, None], **batch.clip_info)
            for n in (network, fresh_network().eval())
        ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("length", [4, 9])
def test_the_null_text_is_fitted_to_the_wanted_length(tmp_path, length):
    folder = released_folder(tmp_path)
    stored = load_file(folder / "model.safetensors")["y_embedder.y_embedding"]
    fitted = load_released(folder, model_max_length=length).y_embedder.y_embedding
    rows = [min(i, len(stored) - 1) for i in range(length)]
    assert torch.equal(fitted, stored[rows])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"t_block.1.weight": None}, "missing: t_block.1.weight"),
        ({"extra.weight": torch.zeros(1)}, "unexpected: extra.weight"),
        ({"t_block.1.bias": torch.zeros(3)}, r"t_block.1.bias is \(3,\) instead of \(144,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        load_released(released_folder(tmp_path, **changes))


def test_damaged_files_are_named(state, tmp_path):
    save_checkpoint(tmp_path, state)
    (tmp_path / "optimizer.safetensors").write_bytes(b"\x00" * 10)
    with pytest.raises(ValueError, match=r"optimizer\.safetensors"):
        load_checkpoint(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"state\.json: stage"):
        read_state(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json"):
        load_network(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        load_released(tmp_path / "nowhere")
