"""No secret value goes where people look: compiled graphs, requests to Kubeflow, logs, reports, MLflow."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from components.config import TrackingConfig
from components.train_command import train_command
from pipelines.cli import main
from pipelines.cluster import Cluster, Placement
from pipelines.config import load_run_config
from pipelines.text_to_video import compile_pipeline
from pipelines.trainjob import render
from tests.kfp_server import KfpServer
from tests.pipelines.conftest import PLANTED_SECRET, Finished

PLANTED = {
    name: f"planted-{name.lower()}-4711"
    for name in (
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "KF_PIPELINES_TOKEN",
        "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN",
    )
}  # fmt: skip
CLUSTER = Cluster.model_validate({"train": {"secrets": {"hub": {"token": "HF_TOKEN"}}}})


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{PLANTED['MLFLOW_TRACKING_PASSWORD']}@mlflow.example")


def test_the_compiled_graph_names_secrets_and_holds_none(planted: None, tmp_path: Path) -> None:
    compile_pipeline(load_run_config("smoke"), tmp_path / "graph.yaml", cluster=CLUSTER)
    text = (tmp_path / "graph.yaml").read_text(encoding="utf-8")
    assert "HF_TOKEN" in text and "hub" in text
    assert "4711" not in text


def test_a_trainjob_and_the_task_that_waits_for_it_name_secrets_and_hold_none(planted: None, tmp_path: Path) -> None:
    cluster = Cluster.model_validate({
        "train": {"nodes": 2, "gpus": 8, "runtime": "r", "secrets": {"hub": {"token": "HF_TOKEN"}}}
    })  # fmt: skip
    config = load_run_config("smoke", {"training.parallel": "ddp", "training.batches_per_step": 16})
    compile_pipeline(config, tmp_path / "graph.yaml", cluster=cluster)
    stage = config.train_config("stage1")
    arguments = train_command(stage, TrackingConfig(), data="s3://b/bucket", parent=None, out="s3://b/stage1")
    job = render(Placement(image="i", cluster=cluster), arguments, name="j", namespace="n", labels={})
    text = (tmp_path / "graph.yaml").read_text(encoding="utf-8") + json.dumps(job)
    assert "HF_TOKEN" in json.dumps(job) and "4711" not in text


@pytest.mark.parametrize("command", ["submit", "refused", "doctor"])
def test_commands_tell_none(
    planted: None, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, tmp_path: Path,
) -> None:  # fmt: skip
    caplog.set_level("DEBUG")
    monkeypatch.setenv("HOME", str(tmp_path))
    kfp = KfpServer()
    kfp.start()
    kfp.behaviour.token = PLANTED["KF_PIPELINES_TOKEN"] if command == "submit" else "another"
    submit = ["submit", "-p", "smoke", "--videos", "s3://v/x", "--image", "i@sha256:0", "--poll", "0.05"]
    arguments = ["doctor", "--kubeconfig", str(tmp_path / "none")] if command == "doctor" else submit
    address = kfp.url.replace("//", f"//user:{PLANTED['KF_PIPELINES_TOKEN']}@")
    monkeypatch.setattr(sys, "argv", ["kinoflow", *arguments, "--host", address if command == "refused" else kfp.url])
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        kfp.stop()
    assert (end.value.code == 0) == (command == "submit")
    shown = capsys.readouterr()
    assert kfp.requests
    assert "4711" not in shown.out + shown.err + caplog.text + "".join(kfp.bodies)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "4711" in path.read_text(errors="replace")]
    assert not written


@pytest.mark.slow
def test_a_whole_run_leaves_none_behind(finished: Finished) -> None:
    """Everything that the run has written: outputs, logs, events, reports, MLflow's database with all parameters."""
    home = finished.project / ".kinoflow"
    secrets = [PLANTED_SECRET, json.loads((home / "credentials.json").read_text())["AWS_SECRET_ACCESS_KEY"]]
    files = [
        path for path in finished.project.rglob("*") if path.is_file() and path != home / "credentials.json"
    ]  # fmt: skip
    assert any(path.suffix == ".db" for path in files) and any(path.suffix == ".log" for path in files)
    leaks = [
        str(path.relative_to(finished.project))
        for path in files
        if any(secret.encode() in path.read_bytes() for secret in secrets)
    ]
    assert not leaks
    assert PLANTED_SECRET not in os.environ.values()
