"""One training run of three stages under faults of every kind, against the same run left in peace."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from safetensors.torch import load

from components import manifest, store
from components.cli import EXIT_FAILED, EXIT_PREEMPTED
from tests.components.test_train import config, write_dataset
from tests.conftest import run_mlflow_server, run_s3_server
from tests.pipelines.chaos.driver import Driver, Life, Nursery, Server
from tests.pipelines.chaos.faults import STAGES, STEPS, STEPS_PER_INTERVAL, Fault, schedule
from tests.s3_process import s3_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEED = 1
TENSORS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
EXPERIMENT, RUN = "chaos", "chaos"


@dataclass
class Workshop:
    """What every scenario needs: processes, a store with data in it, and a folder."""

    nursery: Nursery
    object_store: Server
    data: str
    folder: Path

    def driver(self, name: str, tracking: Server | None = None) -> Driver:
        """A driver with a scratch folder of its own."""
        environment = s3_environment(self.object_store.address)
        return Driver(self.nursery, self.object_store, tracking, self.folder / f"scratch-{name}", environment)

    def arguments(self, stage: str, out: str, parent: str | None = None, data: str | None = None) -> list[str]:
        """Of the command line."""
        settings, tracking = self.folder / f"{stage}.json", self.folder / "tracking.json"
        chosen = config(
            name=stage, steps=STEPS, checkpoint_every=STEPS_PER_INTERVAL, log_every=1, peak_flops_per_s=1e12
        )
        settings.write_text(chosen.model_dump_json())
        tracking.write_text(json.dumps({"experiment": EXPERIMENT, "run_name": RUN}))
        given = ["--config", str(settings), "--data", data or self.data, "--out", out, "--tracking", str(tracking)]
        return [*given, "--parent", parent] if parent else given


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("chaos")
    nursery = Nursery(folder / "nursery.log")
    object_store = Server(run_s3_server, folder / "store")
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in s3_environment(object_store.address).items():
                patch.setenv(name, value)
            patch.delenv("AWS_SESSION_TOKEN", raising=False)
            store.ensure_bucket("s3://chaos")
            yield Workshop(nursery, object_store, write_dataset("s3://chaos/data", STAGES, STEPS), folder)
    finally:
        object_store.kill()
        nursery.close()


def train_all(
    workshop: Workshop, driver: Driver, root: str, faults: dict[str, list[Fault]] | None = None
) -> dict[str, dict[str, Any]]:
    """The reports of the three chained stages."""
    reports: dict[str, dict[str, Any]] = {}
    parent, steps_before = None, 0
    for stage in STAGES:
        out = store.join(root, stage)
        planned = (faults or {}).get(stage)
        driver.run_stage(stage, workshop.arguments(stage, out, parent), out, planned, steps_before=steps_before)
        reports[stage] = json.loads(store.read_bytes(store.join(out, "report.json")))
        parent = str(reports[stage]["checkpoint"])
        steps_before = steps_applied(parent)
    return reports


def steps_applied(checkpoint: str) -> int:
    moments = load(store.read_bytes(store.join(checkpoint, "optimizer.safetensors")))
    return max(int(value) for name, value in moments.items() if name.endswith(".step"))


def digests(checkpoint: str) -> dict[str, str]:
    found = manifest.load(checkpoint)
    assert not manifest.verify(checkpoint)
    return {name: found.files[name].sha256 for name in TENSORS}


@pytest.fixture(scope="module")
def undisturbed(workshop: Workshop) -> dict[str, dict[str, Any]]:
    return train_all(workshop, workshop.driver("undisturbed"), "s3://chaos/undisturbed")


@pytest.fixture
def tracking(workshop: Workshop) -> Iterator[Server]:
    server = Server(run_mlflow_server, workshop.folder / "mlflow")
    yield server
    server.kill()


def test_three_stages_under_faults_end_with_the_same_bytes(workshop, undisturbed, tracking, capsys):
    planned = schedule(SEED)
    driver = workshop.driver("disturbed", tracking)
    began_s = time.monotonic()
    reports = train_all(workshop, driver, "s3://chaos/disturbed", planned)
    wall_s = time.monotonic() - began_s
    with capsys.disabled():
        sys.stdout.write(account(driver.lives, reports, wall_s))
    struck = [fault for life in driver.lives for fault in life.faults]
    assert struck == [fault for stage in STAGES for fault in planned[stage]] and len(struck) >= 20
    for stage in STAGES:
        report, wanted = reports[stage], undisturbed[stage]
        assert digests(report["checkpoint"]) == digests(wanted["checkpoint"]), stage
        assert report["checkpoint_digest"] == wanted["checkpoint_digest"]
        assert [(p["step"], p["loss"]) for p in report["history"]] == [
            (p["step"], p["loss"]) for p in wanted["history"]
        ]
        check_account(report, [life for life in driver.lives if life.stage == stage])
    for life in driver.lives:
        check_end(life)
    check_tracking(tracking, reports)


def losses(report: dict[str, Any]) -> list[tuple[int, float]]:
    return [(point["step"], point["loss"]) for point in report["history"]]


def check_account(report: dict[str, Any], lives: list[Life]) -> None:
    """The stage's own account of its lives; it cannot know of those that died before they could write."""
    counts = {cause: restarts["count"] for cause, restarts in report["restarts"].items()}
    ends = [life.exit_code for life in lives[:-1]]
    assert 0 < report["effective_time_ratio"] < 1
    assert 0 < counts.get("killed", 0) + counts.get("preempted", 0) and sum(counts.values()) <= len(ends)
    assert counts.get("preempted", 0) <= ends.count(EXIT_PREEMPTED)


def check_end(life: Life) -> None:
    """Told to stop, a process says so; only a full disk ends one, and with a sentence."""
    kinds = [fault.kind for fault in life.faults if fault.place != "between lives"]
    if "SIGTERM" in kinds:
        may_have_ended = life.faults[-1].place == "end"
        assert life.exit_code == EXIT_PREEMPTED or (may_have_ended and life.exit_code == 0), life.output
    elif "SIGKILL" in kinds or "NaN then SIGKILL" in kinds:
        assert life.exit_code == -signal.SIGKILL
    elif life.exit_code != 0:
        assert "disk full" in kinds, life.output
        check_sentence(life)


def check_sentence(life: Life) -> None:
    """It ended with one sentence for a person."""
    assert life.exit_code == EXIT_FAILED, life.output
    assert life.output.strip().splitlines()[-1].startswith("error: "), life.output
    assert "Traceback" not in life.output, life.output


def check_tracking(tracking: Server, reports: dict[str, dict[str, Any]]) -> None:
    """One run of each stage, continued by every life and ended."""
    client = MlflowClient(tracking.address)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    for stage in STAGES:
        query = f"tags.\"kinoflow.run\" = '{RUN}' and tags.\"kinoflow.task\" = 'train {stage}'"
        runs = client.search_runs([experiment.experiment_id], query)
        assert [run.info.run_id for run in runs] == [reports[stage]["mlflow_run_id"]]
        assert runs[0].info.status == "FINISHED"
        assert max(point.step for point in client.get_metric_history(runs[0].info.run_id, "loss")) == STEPS


def account(lives: list[Life], reports: dict[str, dict[str, Any]], wall_s: float) -> str:
    """What the faults cost, in words."""
    kept: dict[tuple[str, int], float] = {}
    for life in lives:
        kept |= {(life.stage, number): seconds for number, seconds in life.steps}
    run, effective_s = sum(len(life.steps) for life in lives), sum(kept.values())
    lines = [f"\n{'life':>4} {'stage':7} {'exit':>4} {'s':>5} {'steps':>9}  faults\n"]
    for i, life in enumerate(lives):
        steps = f"{life.steps[0][0]}-{life.steps[-1][0]}" if life.steps else "none"
        faults = ", ".join(map(str, life.faults)) or "none"
        seconds = life.ended_s - life.began_s
        lines.append(f"{i + 1:4} {life.stage:7} {life.exit_code:4} {seconds:5.1f} {steps:>9}  {faults}\n")
    struck = sum(len(life.faults) for life in lives)
    lines.append(
        f"{struck} faults, {len(lives)} lives, {run} steps run for {len(kept)} that count ({run - len(kept)} lost); "
        f"effective training time {effective_s:.1f} of {wall_s:.1f} s: {effective_s / wall_s:.1%}\n"
    )
    for stage, report in reports.items():
        causes = ", ".join(
            f"{r['count']} {cause} ({r['lost_s']:.1f} s lost)" for cause, r in report["restarts"].items()
        )
        lines.append(f"{stage} itself: effective training time {report['effective_time_ratio']:.1%}; {causes}\n")
    return "".join(lines)


# --- what may change the mathematics, and what cannot be mended by starting again ----------------------------------


def assert_finite(out: str) -> None:
    """No published checkpoint of the stage holds a value that is not a number."""
    for item in store.list_objects(out):
        if item.key.endswith(".safetensors"):
            tensors = load(store.read_bytes(store.join(out, item.key)))
            assert all(bool(tensor.isfinite().all()) for tensor in tensors.values()), item.key


def test_one_input_that_is_not_a_number_costs_one_step(workshop, undisturbed):
    out, driver = "s3://chaos/nan/stage1", workshop.driver("nan")
    life = driver.live("stage1", workshop.arguments("stage1", out), [Fault("NaN", 2, "step", 0.0)])
    assert life.exit_code == 0, life.output
    assert_finite(out)
    report = json.loads(store.read_bytes(f"{out}/report.json"))
    repeated = digests(report["checkpoint"]) == digests(undisturbed["stage1"]["checkpoint"])
    assert report["skipped_steps"] == 1 or repeated, report


def test_inputs_that_stay_not_a_number_end_training_with_one_sentence(workshop):
    out, driver = "s3://chaos/nan-for-ever/stage1", workshop.driver("nan-for-ever")
    life = driver.live("stage1", workshop.arguments("stage1", out), [Fault("NaN for ever", 2, "step", 0.0)])
    check_sentence(life)
    assert "nan" in life.output.splitlines()[-1]
    assert_finite(out)
    assert any(item.key.startswith("left-out-") for item in store.list_objects(out))


def test_a_damaged_shard_is_named(workshop):
    data, out = write_dataset("s3://chaos/damaged", STAGES, STEPS), "s3://chaos/damaged-run/stage1"
    shard = max(name for name in manifest.load(data).files if name.startswith("latents/"))
    content = bytearray(store.read_bytes(store.join(data, shard)))
    content[len(content) // 2] ^= 1
    store.write_bytes(store.join(data, shard), bytes(content))
    life = workshop.driver("damaged").live("stage1", workshop.arguments("stage1", out, data=data), [])
    check_sentence(life)
    assert store.join(data, shard) in life.output.splitlines()[-1]


def test_a_parent_that_is_damaged_is_named(workshop, undisturbed):
    out, parent = "s3://chaos/orphan/stage2", undisturbed["stage1"]["checkpoint"]
    victim = store.join(parent, "ema.safetensors")
    content = store.read_bytes(victim)
    try:
        store.write_bytes(victim, content[:-1] + bytes([content[-1] ^ 1]))
        life = workshop.driver("orphan").live("stage2", workshop.arguments("stage2", out, parent), [])
    finally:
        store.write_bytes(victim, content)
    check_sentence(life)
    assert victim in life.output.splitlines()[-1]
