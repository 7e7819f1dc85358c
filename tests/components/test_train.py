import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from components import manifest, store
from components.config import TrackingConfig, TrainConfig
from components.errors import KinoflowError
from components.manifest import sha256_file
from components.plan_file import held_out_plan, text_key, training_plan
from components.shards import ShardWriter
from components.train import train
from components.train.report import read_report
from components.weights import export_weights, import_weights
from model.checkpoint import load_checkpoint, load_network
from model.config import STDiT2Config
from model.diffusion_config import FlowConfig
from model.mask_config import MaskRatios
from model.optimizer_config import OptimizerConfig
from tests.components.plans import plan_of

REPO = Path(__file__).resolve().parents[2]
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "config.json")
STEPS = 12
TRACKING = TrackingConfig(run_name="test")


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def config(**changes) -> TrainConfig:
    values = {
        "name": "stage1",
        "steps": STEPS,
        "network": STDiT2Config(hidden_size=24, depth=1, num_heads=2, qk_norm=True, pred_sigma=False, init="xavier"),
        "diffusion": FlowConfig(),
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "masks": MaskRatios(mask_no=0.5, mask_image_head=0.5),
        "ema_decay": 0.9,
        "precision": "fp32",
        "num_threads": 1,
        "checkpoint_every": 4,
        "log_every": 2,
    }
    return TrainConfig(**(values | changes))


def write_dataset(
    out: str, stages=("stage1",), batches=STEPS, facts=True, num_frames=4, poisoned=(), tombstones=None
) -> str:
    """A bucket output with two plans for each stage: every third batch holds images, `poisoned` ones have no numbers.

    The evaluation plan is the beginning of the training plan.
    """
    generator = torch.Generator().manual_seed(1)
    with manifest.publish(out, "dataset", config={"made": "here"}, inputs={"clips": "table"}) as publication:
        if tombstones:
            publication.annotations["tombstones"] = tombstones
        with ShardWriter(publication.directory, shard_size_bytes=1 << 16) as shards:
            for i in range(6):
                frames = 1 if i % 3 == 2 else num_frames
                shards.add(
                    "latents", f"clip{i}@0+{frames}/{frames}x32x32", torch.randn(4, frames, 4, 4, generator=generator)
                )
                shards.add("text", text_key(f"words {i}"), torch.randn(1 + i % 4, 8, generator=generator))
                if poisoned:
                    nothing = torch.full((4, frames, 4, 4), torch.nan)
                    shards.add("latents", f"bad{i}@0+{frames}/{frames}x32x32", nothing)
        samples = [
            {"clip_id": f"clip{i}", "caption": f"words {i}", "num_frames": 1 if i % 3 == 2 else num_frames}
            for i in range(6)
        ]
        bad = [sample | {"clip_id": f"bad{i}"} for i, sample in enumerate(samples)]
        planned = [
            [(bad if batch in poisoned else samples)[batch % 3 + 3 * slot] for slot in range(2)]
            for batch in range(batches)
        ]
        for stage in stages:
            plan_of(planned).save(publication.directory / training_plan(stage))
            plan_of(planned[:3]).save(publication.directory / held_out_plan(stage))
        if facts:
            publication.facts.update({"latent_channels": 4, "caption_channels": 8, "model_max_length": 5})
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_dataset(str(tmp_path_factory.mktemp("data") / "bucket"), ("stage1", "stage2"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A stage trained without interruption."""
    out = str(tmp_path_factory.mktemp("runs") / "stage1")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return out, train(config(), TRACKING, data=data, parent=None, out=out)


def digests(uri: str) -> dict[str, str]:
    return {name: sha256_file(Path(uri) / name) for name in FILES}


def test_a_stage_ends_with_a_checkpoint_and_a_report(finished, data):
    out, report = finished
    assert report.checkpoint == f"{out}/step-{STEPS:08d}" and report.steps == STEPS
    assert report.model_sha256 == digests(report.checkpoint)["model.safetensors"]
    assert read_report(out) == report
    document = json.loads(Path(out, "report.json").read_text())
    assert [point["step"] for point in document["history"]] == [2, 4, 6, 8, 10, 12]
    assert report.loss_first == document["history"][0]["loss"]
    assert report.seconds > 0 and report.samples_per_s > 0 and report.parent_checkpoint is None
    assert not manifest.verify(report.checkpoint)
    published = manifest.load(report.checkpoint)
    assert published.kind == "checkpoint" and published.digest == report.checkpoint_digest
    assert published.inputs == {"data": manifest.load(data).digest, "clips": manifest.load(data).dataset_digest}
    assert published.annotations["data"] == data and published.facts["step"] == STEPS
    network = load_network(Path(report.checkpoint))
    # the widths the encoders decide come from the data, not from the configuration
    assert (network.config.in_channels, network.config.caption_channels, network.config.model_max_length) == (4, 8, 5)


def test_only_the_newest_checkpoints_are_kept(finished):
    out, _ = finished
    assert {item.key.split("/")[0] for item in store.list_objects(out)} == {
        "step-00000008", "step-00000012", "report.json", "history.json",
    }  # fmt: skip


def test_a_stage_that_has_ended_is_left_alone(finished, data):
    out, report = finished
    before = {p: p.stat().st_mtime_ns for p in Path(out).rglob("*")}
    assert train(config(), TRACKING, data=data, parent=None, out=out) == report
    # how often it logs does not decide what it computes
    assert train(config(log_every=5), TRACKING, data=data, parent=None, out=out) == report
    assert {p: p.stat().st_mtime_ns for p in Path(out).rglob("*")} == before


def test_the_same_stage_elsewhere_has_the_same_digest(finished, data, tmp_path):
    _, report = finished
    other = train(config(), TRACKING, data=data, parent=None, out=str(tmp_path / "run"))
    assert digests(other.checkpoint) == digests(report.checkpoint)
    assert other.checkpoint_digest == report.checkpoint_digest
    assert other.loss_last == report.loss_last


def test_stages_are_chained(finished, data, tmp_path):
    _, parent = finished
    asked = config(name="stage2", steps=4)
    report = train(asked, TRACKING, data=data, parent=parent.checkpoint, out=str(tmp_path / "stage2"))
    assert report.parent_checkpoint == parent.checkpoint
    state = load_checkpoint(Path(report.checkpoint))
    assert state.progress.handover.parent == parent.checkpoint_digest and state.progress.step == 4
    assert float(state.optimizer["t_block.1.weight.step"]) == STEPS + 4
    assert manifest.load(report.checkpoint).inputs["parent"] == parent.checkpoint_digest
    alone = train(
        asked.model_copy(update={"carry_optimizer": False}), TRACKING, data=data, parent=parent.checkpoint,
        out=str(tmp_path / "alone"),
    )  # fmt: skip
    assert float(load_checkpoint(Path(alone.checkpoint)).optimizer["t_block.1.weight.step"]) == 4


def test_a_first_stage_starts_from_imported_weights(finished, data, tmp_path):
    export_weights(finished[1].checkpoint, str(tmp_path / "released"), use_ema=True)
    weights = str(tmp_path / "weights")
    published = import_weights(str(tmp_path / "released"), weights)
    slow = OptimizerConfig(learning_rate=1e-12)
    asked = config(steps=1, start_from=weights, optimizer=slow)
    report = train(asked, TRACKING, data=data, parent=None, out=str(tmp_path / "run"))
    state = load_checkpoint(Path(report.checkpoint))
    before = load_network(Path(finished[1].checkpoint), use_ema=True).state_dict()
    assert all(torch.allclose(state.weights[name], tensor, atol=1e-6) for name, tensor in before.items())
    assert report.parent_checkpoint == weights and state.progress.handover.parent == published.digest
    other = config(steps=1, start_from=weights, network=asked.network.model_copy(update={"num_heads": 1}))
    with pytest.raises(KinoflowError, match="num_heads 2, this stage's network 1"):
        train(other, TRACKING, data=data, parent=None, out=str(tmp_path / "other"))


def copy_run(finished, tmp_path) -> str:
    """The finished run as it would lie there had it been killed after its last checkpoint."""
    out = tmp_path / "run"
    out.mkdir()
    subprocess.run(["cp", "-r", *map(str, Path(finished[0]).iterdir()), str(out)], check=True)
    (out / "report.json").unlink()
    return str(out)


def test_a_killed_report_is_written_again(finished, data, tmp_path):
    out = copy_run(finished, tmp_path)
    report = train(config(), TRACKING, data=data, parent=None, out=out)
    assert report.checkpoint_digest == finished[1].checkpoint_digest
    assert report.history == finished[1].history and report.loss_last == finished[1].loss_last
    assert report.seconds >= 0.9 * sum(point.seconds for point in finished[1].history)


@pytest.mark.parametrize("damage", ["flipped byte", "missing file", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over_with_its_name(finished, data, tmp_path, caplog, damage):
    out = copy_run(finished, tmp_path)
    victim = Path(out, f"step-{STEPS:08d}", "optimizer.safetensors")
    if damage == "flipped byte":
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(content)
    elif damage == "missing file":
        victim.unlink()
    else:
        victim = victim.with_name("manifest.json")
        victim.unlink()
    report = train(config(), TRACKING, data=data, parent=None, out=out)
    assert str(victim if damage != "no manifest" else victim.parent) in caplog.text
    assert digests(report.checkpoint) == digests(finished[1].checkpoint)
    assert report.checkpoint_digest == finished[1].checkpoint_digest
    assert [p.loss for p in report.history] == [p.loss for p in finished[1].history]


def test_checkpoints_of_another_configuration_are_not_continued(finished, data, tmp_path, caplog):
    out = copy_run(finished, tmp_path)
    report = train(config(seed=43, steps=4), TRACKING, data=data, parent=None, out=out)
    assert "of another configuration" in caplog.text
    assert report.checkpoint.endswith("step-00000004") and [p.step for p in report.history] == [2, 4]


def test_training_from_and_to_an_object_store(finished, s3_server):
    bucket = s3_server.bucket()
    remote = write_dataset(f"{bucket}/run/bucket", ("stage1", "stage2"))
    report = train(config(), TRACKING, data=remote, parent=None, out=f"{bucket}/run/stage1")
    assert report.checkpoint == f"{bucket}/run/stage1/step-{STEPS:08d}"
    assert report.checkpoint_digest == finished[1].checkpoint_digest
    assert not manifest.verify(report.checkpoint)


@pytest.mark.parametrize(
    ("changes", "made", "words"),
    [
        ({"steps": STEPS + 1}, {}, r"holds 12 batches, training needs 13"),
        ({"name": "stage9"}, {}, r"no plan for the stage 'stage9'"),
        ({}, {"facts": False}, r"lacks latent_channels"),
        ({"masks": MaskRatios(mask_no=0.5, mask_quarter_head=0.5)}, {"num_frames": 3}, r"at least 4 frames"),
        ({"parallel": "ddp"}, {}, r"needs a launcher"),
    ],
)
def test_what_does_not_fit_is_said_before_training(tmp_path, changes, made, words):
    bad = write_dataset(str(tmp_path / "bucket"), **made)
    with pytest.raises(KinoflowError, match=words):
        train(config(**changes), TRACKING, data=bad, parent=None, out=str(tmp_path / "out"))


def test_prefixes_of_the_wrong_kind_are_refused(finished, data, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(KinoflowError, match="Nothing is published at"):
        train(config(), TRACKING, data=str(tmp_path / "nowhere"), parent=None, out=out)
    with pytest.raises(KinoflowError, match="holds 'dataset', not 'checkpoint'"):
        train(config(), TRACKING, data=data, parent=data, out=out)
    with pytest.raises(KinoflowError, match="does not fit this network"):
        asked = config(network=config().network.model_copy(update={"depth": 2}))
        train(asked, TRACKING, data=data, parent=finished[1].checkpoint, out=out)


# --- killed at any moment ----------------------------------------------------------------------------------------


def start(folder: Path, data: str, out: str, ranks: int = 0, **changes) -> subprocess.Popen:
    """Train in a process of its own, or in one that torchrun starts `ranks` of."""
    (folder / "config.json").write_text(config(**changes).model_dump_json())
    command = [
        sys.executable, "-m", "components.train", "--config", str(folder / "config.json"), "--data", data, "--out", out,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    return subprocess.Popen(
        command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen, condition, timeout_s: float = 280) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the moment to kill never came: {process.communicate()}")
        time.sleep(0.0005)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(finished, data, tmp_path):
    out = tmp_path / "run"
    moments = [
        lambda: (out / "history.json").exists(),  # about to publish its first checkpoint
        lambda: any(out.glob("step-00000008/*")),  # in the middle of writing the second
        lambda: any(out.glob("step-00000012/*")),  # in the middle of writing the last
    ]
    for moment in moments:
        process = start(tmp_path, data, str(out))
        wait_for(process, moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(tmp_path, data, str(out))
    stdout, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr
    report = json.loads(stdout)
    assert digests(report["checkpoint"]) == digests(finished[1].checkpoint)
    assert report["checkpoint_digest"] == finished[1].checkpoint_digest
    assert report["loss_last"] == finished[1].loss_last


def test_the_command_line_says_a_mistake_in_one_sentence(tmp_path):
    process = start(tmp_path, str(tmp_path / "nowhere"), str(tmp_path / "out"))
    _, stderr = process.communicate(timeout=280)
    assert process.returncode == 1
    assert stderr.strip().splitlines()[-1].startswith("error: Nothing is published at")
    assert "Traceback" not in stderr
