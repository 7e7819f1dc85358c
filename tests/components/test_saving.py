"""Checkpoints of a stage: saved beside the loop, shared by ranks, passed over when damaged, pruned with care."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader

from components import manifest, store
from components.errors import KinoflowError
from components.manifest import sha256_file
from components.train.checkpoints import StageCheckpoints
from components.train.parts import wait_for_parts
from components.train.saving import AsyncCheckpoints
from model.checkpoint import OPTIMIZER_PARTS, Part, Progress, TrainingState, load_checkpoint
from model.config import STDiT2Config
from model.diffusion_config import FlowConfig
from model.optimizer_config import OptimizerConfig

ROWS = 7  # not a multiple of any number of ranks below


def make_state(step: int) -> TrainingState:
    generator = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(ROWS, 5, generator=generator), "b.bias": torch.randn(2, generator=generator)}
    moments = {f"{name}.exp_avg": torch.randn(t.shape, generator=generator) for name, t in weights.items()}
    return TrainingState(
        config=STDiT2Config(hidden_size=24, depth=1, num_heads=2),
        weights=weights,
        ema={name: tensor + 1 for name, tensor in weights.items()},
        optimizer=moments | {f"{name}.step": torch.tensor(float(step)) for name in weights},
        progress=Progress(
            stage="stage1", step=step, steps=100, seed=1, random_stream="made", optimizer=OptimizerConfig(),
            diffusion=FlowConfig(), ema_decay=0.9,
        ),
    )  # fmt: skip


def share(state: TrainingState, index: int, count: int) -> TrainingState:
    """What one of several ranks holds: rows cut as torch's `Shard(0)` cuts them."""
    own, offsets = {}, {}
    for name, tensor in state.optimizer.items():
        offsets[name] = [0] * tensor.dim()
        own[name] = tensor
        if tensor.dim():
            rows = -(-len(tensor) // count)
            offsets[name][0] = min(index * rows, len(tensor))
            own[name] = tensor[index * rows : (index + 1) * rows]
    first = index == 0
    return TrainingState(
        state.config, state.weights if first else {}, state.ema if first else {}, own, state.progress,
        part=Part(index, count, offsets),
    )  # fmt: skip


def stage(out: object, **config: int) -> StageCheckpoints:
    return StageCheckpoints(str(out), config, {"data": "digest"})


def publish(checkpoints: StageCheckpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.publish(make_state(step), facts={}, annotations={})


def steps_of(checkpoints: StageCheckpoints) -> list[int]:
    folders = {item.key.split("/")[0] for item in store.list_objects(checkpoints.out)}
    return sorted(int(folder.removeprefix("step-")) for folder in folders if folder.startswith("step-"))


def assert_equal(ours: TrainingState, theirs: TrainingState) -> None:
    assert (ours.config, ours.progress) == (theirs.config, theirs.progress)
    for kind in ("weights", "ema", "optimizer"):
        mine, others = getattr(ours, kind), getattr(theirs, kind)
        assert mine.keys() == others.keys() and len(mine) == len(others)
        assert all(torch.equal(mine[name], others[name]) for name in mine)


# --- in the background ---------------------------------------------------------------------------------------------


def test_the_loop_goes_on_while_a_checkpoint_is_written(tmp_path):
    checkpoints, gate, released, opened = stage(tmp_path), Event(), [], []
    states = [make_state(step) for step in (1, 2, 3)]
    for state in states:
        state.release = lambda step=state.progress.step: released.append(step)
    with AsyncCheckpoints(checkpoints, keep=2) as saver:
        saver.save(
            states[0], {"x": 1}, {"y": "z"}, beside={"history.json": b"{}"}, then=lambda _: opened.append(gate.wait(60))
        )
        gate.set()
        saver.save(states[1], {}, {})
        saver.save(states[2], {}, {})
        published = saver.wait()
        assert published == manifest.load(checkpoints.uri(3)) == saver.last
    assert opened == [True]  # the loop came back to open the gate while the first save was held at it
    assert set(released) == {1, 2, 3}
    assert store.read_bytes(f"{tmp_path}/history.json") == b"{}"
    (tmp_path / "history.json").unlink()
    assert steps_of(checkpoints) == [2, 3]
    assert not (tmp_path / "step-00000001").exists()
    found = checkpoints.newest_good(tmp_path / "scratch")
    assert found is not None and found[0] == 3
    assert_equal(found[1], states[2])
    assert manifest.verify(checkpoints.uri(2)) == []


def test_what_goes_wrong_is_said_at_the_next_save(tmp_path):
    (tmp_path / "file").write_text("in the way")
    saver = AsyncCheckpoints(stage(tmp_path / "file" / "stage"), keep=2)
    saver.save(make_state(1), {}, {})
    with pytest.raises(KinoflowError, match="Not a directory"):
        saver.save(make_state(2), {}, {})
    saver.close()


def test_an_error_of_the_loop_is_not_hidden_by_one_of_the_save(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ZeroDivisionError), AsyncCheckpoints(stage(tmp_path / "file" / "stage"), keep=2) as saver:
        saver.save(make_state(1), {}, {})
        raise ZeroDivisionError
    assert "last checkpoint was not saved" in caplog.text


def test_files_are_the_same_bytes_however_they_are_written(tmp_path, s3_server):
    here, there = stage(tmp_path), stage(s3_server.bucket() + "/stage")
    for checkpoints in (here, there):
        publish(checkpoints, 4)
    assert manifest.load(here.uri(4)).digest == manifest.load(there.uri(4)).digest
    assert manifest.verify(there.uri(4)) == []


# --- shares of several ranks ---------------------------------------------------------------------------------------


def save_shares(checkpoints: StageCheckpoints, state: TrainingState, count: int, attempt: int = 5) -> None:
    def one(index: int) -> None:
        with AsyncCheckpoints(checkpoints, keep=9, attempt=attempt) as saver:
            saver.save(share(state, index, count), {}, {})

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, range(count)))


@pytest.mark.parametrize("count", [2, 4])
def test_shares_make_one_checkpoint_for_any_number_of_ranks(tmp_path, count):
    checkpoints, state = stage(tmp_path / "out"), make_state(3)
    save_shares(checkpoints, state, 3)
    save_shares(checkpoints, state, count, attempt=6)  # the same step again by another number of ranks
    uri = checkpoints.uri(3)
    assert manifest.verify(uri) == []
    files = {item.key for item in store.list_objects(uri)}
    assert files == {
        "model.safetensors", "ema.safetensors", "config.json", "state.json", "manifest.json",
        *(f"optimizer/part-{index + 1:05d}-of-{count:05d}.safetensors" for index in range(count)),
    }  # fmt: skip
    assert_equal(load_checkpoint(Path(uri)), state)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_the_shares_too(tmp_path):
    checkpoints, state = stage(tmp_path), make_state(3)
    save_shares(checkpoints, state, 3)
    read = {name: torch.zeros_like(tensor) for name, tensor in state.optimizer.items()}
    folder = Path(checkpoints.uri(3)) / OPTIMIZER_PARTS
    dcp.load(read, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.optimizer.items())


def test_a_share_that_is_missing_is_named(tmp_path):
    checkpoints = stage(tmp_path)
    save_shares(checkpoints, make_state(3), 3)
    (Path(checkpoints.uri(3)) / "optimizer/part-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks part-00002-of-00003"):
        load_checkpoint(Path(checkpoints.uri(3)))


def test_receipts_of_an_earlier_launch_do_not_count(tmp_path):
    checkpoints, state = stage(tmp_path), make_state(3)
    checkpoints.publish(share(state, 1, 2), facts={}, annotations={}, attempt=1)
    with pytest.raises(KinoflowError, match=r"part-00002-of-00002\.safetensors was not written within 0 s"):
        wait_for_parts(checkpoints.uri(3), share(state, 0, 2), 2, patience_s=0)
    assert wait_for_parts(checkpoints.uri(3), share(state, 0, 2), 1, patience_s=0)


# --- damage --------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def forge(path: Path) -> None:
    """Wrong JSON in a file whose checksum is right."""
    path.write_text('{"stage": 3}')
    manifest_path = path.with_name(manifest.NAME)
    document = json.loads(manifest_path.read_text())
    document["files"][path.name] = {"size_bytes": path.stat().st_size, "sha256": sha256_file(path)}
    manifest_path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.safetensors", flip),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-8])),
        ("ema.safetensors", Path.unlink),
        ("manifest.json", Path.unlink),
        ("manifest.json", lambda path: path.write_text("{]")),
        ("manifest.json", lambda path: path.write_bytes(b"")),
        ("state.json", forge),
    ],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(tmp_path, caplog, name, damage):
    checkpoints = stage(tmp_path / "out")
    publish(checkpoints, 4, 8)
    damage(tmp_path / "out" / "step-00000008" / name)
    found = checkpoints.newest_good(tmp_path / "scratch")
    assert found is not None and found[0] == 4
    assert_equal(found[1], make_state(4))
    assert "step-00000008" in caplog.text and name in caplog.text
    assert "Training goes on from the checkpoint before it" in caplog.text


# --- pruning -------------------------------------------------------------------------------------------------------


def test_what_was_used_and_every_so_many_steps_stays(tmp_path):
    checkpoints = stage(tmp_path)
    publish(checkpoints, 5, 10, 15, 20, 25)
    manifest.pin(checkpoints.uri(15), "s3://elsewhere/stage2")
    checkpoints.prune(1, keep_every=10)
    assert steps_of(checkpoints) == [10, 15, 20, 25]
    assert manifest.verify(checkpoints.uri(15)) == []


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path):
    checkpoints = stage(tmp_path)
    publish(checkpoints, 1, 2, 3)
    (Path(checkpoints.uri(3)) / "model.safetensors").unlink()
    checkpoints.prune(1)
    assert steps_of(checkpoints) == [2, 3]
    (Path(checkpoints.uri(2)) / "model.safetensors").unlink()
    checkpoints.prune(1)
    assert steps_of(checkpoints) == [2, 3]


def test_what_training_went_back_behind_stays_but_is_not_gone_on_from(tmp_path):
    checkpoints = stage(tmp_path)
    publish(checkpoints, 2, 4, 6)
    found = checkpoints.before(3, tmp_path / "scratch")
    assert found is not None and found[0] == 2 == checkpoints.newest_good(tmp_path / "scratch")[0]
    assert steps_of(checkpoints) == [2, 4, 6]
    assert not manifest.verify(checkpoints.uri(6))
    checkpoints.prune(keep=1)
    assert steps_of(checkpoints) == [2, 4, 6]  # nothing newer than step 2 counts yet
    publish(checkpoints, 4)  # come past it again
    assert checkpoints.newest_good(tmp_path / "scratch")[0] == 4
    checkpoints.prune(keep=1)
    assert steps_of(checkpoints) == [4, 6]
    (tmp_path / "set-aside.json").write_text("{")
    with pytest.raises(KinoflowError, match=r"set-aside.json is damaged .* delete it and the checkpoints not to go on"):
        checkpoints.newest_good(tmp_path / "scratch")
