"""The task that waits for a TrainJob against an API server in memory: adopted, failed, deleted, away, cancelled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.config import TrackingConfig, TrainConfig
from components.errors import KinoflowError
from model.config import STDiT2Config
from pipelines.cluster import NAMESPACE_VARIABLE, POD_VARIABLE, RUN_VARIABLE, Cluster, Placement
from pipelines.trainjob import job_name
from pipelines.trainjob_waiting import delete_jobs, train_by_job
from tests.trainjob_server import TrainJobServer

PLACEMENT = Placement(
    image="registry.example/train@sha256:" + "0" * 64,
    cluster=Cluster.model_validate({"train": {"nodes": 2, "gpus": 8, "runtime": "kinoflow-2x8"}}),
)
OUT = "s3://kinoflow/runs/r/stage1"
CONFIG = TrainConfig(name="stage1", steps=2, network=STDiT2Config(), parallel="ddp")
NAME = job_name("run-1", "stage1", OUT)
POLL_S = 0.02


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TrainJobServer]:
    server = TrainJobServer()
    server.start()
    file = str(server.write_kubeconfig(tmp_path / "kubeconfig"))
    monkeypatch.setenv("KUBECONFIG", file)  # for processes; here it was read when the library was imported
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", file)
    for name, value in {RUN_VARIABLE: "run-1", POD_VARIABLE: "waiting-1", NAMESPACE_VARIABLE: "team-a"}.items():
        monkeypatch.setenv(name, value)
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "flow", "uid": "u-1"}
    server.pods["waiting-1"] = {"metadata": {"name": "waiting-1", "ownerReferences": [owner], "labels": {}},
                                "spec": {"containers": []}, "status": {"phase": "Running"}}  # fmt: skip
    server.workflows["flow"] = {"metadata": {"name": "flow"}, "spec": {}}
    yield server
    server.failing = False
    server.stop()


def wait(outage_s: float = 20.0) -> None:
    train_by_job(
        PLACEMENT, config=CONFIG, tracking=TrackingConfig(), data="s3://b/bucket", parent=None, out=OUT,
        poll_s=POLL_S, outage_s=outage_s,
    )  # fmt: skip


def soon(condition: Callable[[], Any], timeout_s: float = 200.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.005)


def play(act: Callable[[], None]) -> threading.Thread:
    """Act as the controller once there is a job."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def test_a_job_is_followed_to_its_end(
    server: TrainJobServer, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def controller() -> None:
        soon(lambda: NAME in server.jobs)
        server.set_state(NAME, "Suspended", "no quota yet")
        time.sleep(0.1)
        pod = server.add_pod(NAME, 0, "step 1")
        server.add_pod(NAME, 1, "of the other node")
        server.set_state(NAME, "Running")
        for step in range(2, 6):
            time.sleep(0.05)
            server.say(pod, f"step {step}")
        server.set_state(NAME, "Complete")

    play(controller)
    wait()
    lines = [line.split("] ")[1] for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert lines == [f"step {step}" for step in range(1, 6)]
    told = [record.message for record in caplog.records if record.message.startswith("TrainJob")]
    assert f"TrainJob {NAME} submitted: 2 nodes, 8 processes each." in told
    assert f"TrainJob {NAME}: waiting for its queue (no quota yet)" in told
    assert told[-1].startswith(f"TrainJob {NAME}: complete")
    made = server.jobs[NAME]
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "flow", "uid": "u-1"}
    ]
    assert made["metadata"]["labels"] == {"kinoflow.io/stage": "stage1", "kinoflow.io/run": "run-1"}


CHILD = """
import json, sys
from components.config import TrackingConfig, TrainConfig
from pipelines.cluster import Placement
from pipelines.trainjob_waiting import delete_jobs, train_by_job
placement, config, out = json.loads(sys.argv[1])
train_by_job(Placement.model_validate_json(placement), config=TrainConfig.model_validate_json(config),
             tracking=TrackingConfig(), data="s3://b/bucket", parent=None, out=out, poll_s=0.02)
"""


def start() -> subprocess.Popen[str]:
    told = json.dumps([PLACEMENT.model_dump_json(), CONFIG.model_dump_json(), OUT])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, told], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def test_a_killed_task_adopts_its_job_when_it_starts_again(server: TrainJobServer) -> None:
    process = start()
    try:
        soon(lambda: NAME in server.jobs)
        uid = server.jobs[NAME]["metadata"]["uid"]
        server.add_pod(NAME, 0, "step 1")
        server.set_state(NAME, "Running")
    finally:
        process.kill()
        process.communicate()
    assert server.jobs[NAME]["metadata"]["uid"] == uid
    play(lambda: (time.sleep(0.1), server.set_state(NAME, "Complete"))[0])
    wait()
    assert server.jobs[NAME]["metadata"]["uid"] == uid and len(server.created()) == 1


@pytest.mark.parametrize("ending", [{}, {"activeDeadlineSeconds": 0}, {"shutdown": "Terminate"}])
def test_told_to_stop_the_job_goes_on_unless_the_run_is_being_ended(
    server: TrainJobServer, ending: dict[str, Any]
) -> None:
    process = start()
    soon(lambda: NAME in server.jobs)
    server.workflows["flow"]["spec"] = ending
    soon(lambda: sum(path.endswith(NAME) for _, path in server.requests) > 3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 75, err
    assert (NAME in server.jobs) == (not ending)
    assert ("is deleted" if ending else "goes on, start again") in err


def test_a_failed_job_ends_with_the_sentence_of_the_pod_that_failed(
    server: TrainJobServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def controller() -> None:
        soon(lambda: NAME in server.jobs)
        server.add_pod(NAME, 0, "step 1", "connection closed by peer", phase="Failed")
        server.add_pod(NAME, 1, "step 1", "error: Loss is not finite at step 7.", phase="Failed")
        server.set_state(NAME, "Failed", "jobset failed")

    play(controller)
    with pytest.raises(KinoflowError, match=r"failed \(jobset failed\); .*-node-0-1-.*: Loss is not finite at step 7"):
        wait()
    assert "connection closed by peer" in capsys.readouterr().err


def test_a_retry_submits_a_failed_job_anew(server: TrainJobServer) -> None:
    play(lambda: (soon(lambda: NAME in server.jobs), server.set_state(NAME, "Failed", "x"))[0])
    with pytest.raises(KinoflowError, match="its pods said nothing"):
        wait()
    uid = server.jobs[NAME]["metadata"]["uid"]

    def controller() -> None:
        soon(lambda: server.jobs.get(NAME, {"metadata": {"uid": uid}})["metadata"]["uid"] != uid)
        server.set_state(NAME, "Complete")

    play(controller)
    wait()
    assert len(server.created()) == 2


def test_a_job_that_somebody_deletes_is_said_to_be_gone(server: TrainJobServer) -> None:
    def controller() -> None:
        soon(lambda: NAME in server.jobs)
        server.set_state(NAME, "Running")
        time.sleep(0.1)
        server.jobs.pop(NAME)

    play(controller)
    with pytest.raises(KinoflowError, match=f"{NAME} was deleted while it ran"):
        wait()


def test_an_api_that_is_away_for_a_while_is_waited_for(
    server: TrainJobServer, caplog: pytest.LogCaptureFixture
) -> None:
    def controller() -> None:
        soon(lambda: NAME in server.jobs)
        server.failing = True
        time.sleep(0.3)
        server.failing = False
        server.stop()
        time.sleep(0.5)
        server.start()
        server.set_state(NAME, "Complete")

    play(controller)
    wait()
    assert "The Kubernetes API" in caplog.text and len(server.created()) == 1


def test_an_api_that_stays_away_ends_the_attempt_and_not_the_job(server: TrainJobServer) -> None:
    play(lambda: (soon(lambda: NAME in server.jobs), setattr(server, "failing", True))[0])
    with pytest.raises(SystemExit) as end:
        wait(outage_s=0.5)
    assert end.value.code == 75 and NAME in server.jobs


def test_what_the_server_refuses_is_one_sentence(server: TrainJobServer) -> None:
    server.forbidden = "trainjobs"
    with pytest.raises(KinoflowError, match=r"may not get TrainJobs in team-a \(403\); install the chart workspace"):
        wait()
    server.forbidden, server.invalid = "", "spec.runtimeRef: TrainingRuntime kinoflow-2x8 not found"
    with pytest.raises(KinoflowError, match=r"refuses to create TrainJobs \(422\): spec.runtimeRef"):
        wait()
    server.invalid = ""
    server.jobs[NAME] = {"metadata": {"name": NAME, "labels": {"kinoflow.io/run": "another"}}}
    with pytest.raises(KinoflowError, match="belongs to another run"):
        wait()


def test_the_end_of_a_run_deletes_the_jobs_that_nobody_waits_for(server: TrainJobServer) -> None:
    for name, run, state in (("a", "run-1", "Running"), ("b", "run-1", "Complete"), ("c", "run-2", "Running")):
        server.jobs[name] = {"metadata": {"name": name, "labels": {"kinoflow.io/run": run}}}
        server.set_state(name, state)
    delete_jobs("run-1", "team-a")
    assert set(server.jobs) == {"b", "c"}
