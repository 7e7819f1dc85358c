import logging
import math
import socket
import threading
import time
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from mlflow import MlflowClient

from components.config import TrackingConfig, flatten
from components.tracking import background as tracking
from components.tracking import open_tracker


@pytest.fixture
def config() -> TrackingConfig:
    """A pipeline run of its own for each test."""
    return TrackingConfig(
        experiment="tests", run_name=f"run-{uuid4().hex[:8]}", dataset_digest="ab" * 32, source_version="e1.dir"
    )


def runs_of(uri: str, config: TrackingConfig) -> dict[str, object]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    found = client.search_runs([experiment.experiment_id], f"tags.`kinoflow.run` = '{config.run_name}'")
    tasks = {run.data.tags["kinoflow.task"]: run for run in found}
    assert len(tasks) == len(found)
    return tasks


def test_a_stage_is_a_nested_run_with_all_it_was_told(mlflow_server, config, tmp_path):
    (tmp_path / "report.html").write_text("<p>done</p>")
    params = {"steps": 5, "network": {"depth": 2}, "long": "x" * 2000}
    with open_tracker(config, task="train stage1", params=params, tags={"colour": "red"}) as tracker:
        tracker.log_dataset("clips", config.dataset_digest, "s3://bucket/data", "training")
        for step in range(1, 2101):
            tracker.log_metrics({"loss": 1 / step, "grad_norm": math.nan}, step)
        tracker.set_tags({"kinoflow.checkpoint": "s3://bucket/step-5"})
        tracker.log_artifact(tmp_path / "report.html", "reports")
        (tmp_path / "report.html").unlink()
        run_id = tracker.run_id(timeout_s=60)
    client = MlflowClient(mlflow_server)
    runs = runs_of(mlflow_server, config)
    run = runs["train stage1"]
    assert run.info.run_id == run_id and run.info.status == "FINISHED"
    assert runs["pipeline"].info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == runs["pipeline"].info.run_id
    assert run.data.params["network.depth"] == "2" and len(run.data.params["long"]) == 500
    assert run.data.tags["colour"] == "red" and run.data.tags["kinoflow.checkpoint"] == "s3://bucket/step-5"
    history = client.get_metric_history(run_id, "loss")
    assert len(history) == 2100 and history[-1].value == 1 / 2100
    assert "grad_norm" not in run.data.metrics
    assert any(name.startswith("system/cpu") for name in run.data.metrics)
    inputs = run.inputs.dataset_inputs
    assert [(i.dataset.name, i.dataset.digest, i.tags[0].value) for i in inputs] == [
        ("clips", config.dataset_digest[:36], "training")
    ]
    assert run.data.tags["kinoflow.dataset_digest"] == config.dataset_digest
    assert run.data.tags["kinoflow.source_version"] == config.source_version
    assert [item.path for item in client.list_artifacts(run_id, "reports")] == ["reports/report.html"]


def test_a_restart_goes_on_in_the_same_run(mlflow_server, config):
    with pytest.raises(RuntimeError), open_tracker(config, task="train stage1", params={"steps": 5}) as tracker:
        tracker.log_metrics({"loss": 2.0}, 1)
        raise RuntimeError("killed")
    assert runs_of(mlflow_server, config)["train stage1"].info.status == "FAILED"
    with open_tracker(config, task="train stage1", params={"steps": 5}) as tracker:
        tracker.log_metrics({"loss": 1.0}, 2)
    with open_tracker(config, task="train stage2", params={}):
        pass
    runs = runs_of(mlflow_server, config)
    assert set(runs) == {"pipeline", "train stage1", "train stage2"}
    assert runs["train stage1"].info.status == "FINISHED"
    history = MlflowClient(mlflow_server).get_metric_history(runs["train stage1"].info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 1.0)]


@pytest.mark.parametrize("source", ["s3://bucket/run/stage3/step-00000400", "/data/run/stage3/step-00000400"])
def test_a_checkpoint_becomes_a_model_version_once(mlflow_server, config, source):
    name = f"model-{uuid4().hex[:8]}"
    for digest in ("one", "one", "two"):
        with open_tracker(config, task="evaluate", params={}) as tracker:
            tracker.register_model(name, source, "candidate", {"digest": digest})
    client = MlflowClient(mlflow_server)
    versions = client.search_model_versions(f"name = '{name}'")
    assert sorted(version.tags["digest"] for version in versions) == ["one", "two"]
    assert {version.tags["kinoflow.checkpoint"] for version in versions} == {source}
    best = client.get_model_version_by_alias(name, "candidate")
    assert best.tags["digest"] == "two"
    if source.startswith("s3://"):
        assert best.source == source


def test_what_the_server_refuses_is_dropped_and_the_rest_arrives(mlflow_server, config, tmp_path, caplog):
    with open_tracker(config, task="t", params={"steps": 5}):
        pass
    with open_tracker(config, task="t", params={"steps": 6}) as tracker:
        tracker.log_artifact(tmp_path / "nowhere.txt")
        tracker.log_metrics({"loss": 3.0}, 1)
    assert caplog.text.count("MLflow refused a record") == 1
    assert f"{tmp_path / 'nowhere.txt'} is not attached to the run 't'" in caplog.text
    run = runs_of(mlflow_server, config)["t"]
    assert run.data.params["steps"] == "5" and run.data.metrics["loss"] == 3.0


def test_without_an_address_nothing_is_tracked(monkeypatch, config, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    caplog.set_level(logging.INFO)
    with open_tracker(config, task="t", params={}) as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
        assert tracker.run_id(timeout_s=5) == ""
    assert caplog.text.count("not tracked") == 1


def test_a_server_that_is_away_costs_one_warning_and_no_time(monkeypatch, config, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with open_tracker(config, task="t", params={"a": 1}) as tracker:
        started = time.perf_counter()
        for step in range(10_000):
            tracker.log_metrics({"loss": 1.0}, step)
        assert time.perf_counter() - started < 5
        assert tracker.run_id(timeout_s=60) == ""
    assert caplog.text.count("cannot be reached") == 1
    assert caplog.text.count("were not sent") == 1


class Door:
    """A port that leads to the server while it is open: a server that goes away and comes back, without the start."""

    def __init__(self, server: str) -> None:
        self._server = urlsplit(server)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @contextmanager
    def open(self):
        server, passing = self._server, []

        class Forward(BaseRequestHandler):
            def handle(self):
                with socket.create_connection((server.hostname, server.port)) as onwards:
                    passing.append(self.request)
                    back = threading.Thread(target=pour, args=(onwards, self.request), daemon=True)
                    back.start()
                    pour(self.request, onwards)
                    back.join()

        class Listener(ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True

        with Listener(("127.0.0.1", self.port), Forward) as listener:
            threading.Thread(target=listener.serve_forever, daemon=True).start()
            yield
            listener.shutdown()
        for request in passing:
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


def pour(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def test_numbers_wait_for_a_server_that_goes_away_and_comes_back(mlflow_server, config, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "RETRY_INTERVAL_S", 0.1)
    monkeypatch.setattr(tracking, "FLUSH_INTERVAL_S", 0.1)
    door = Door(mlflow_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{door.port}")
    with open_tracker(config, task="t", params={}) as tracker:
        tracker.log_metrics({"loss": 3.0}, 1)
        wait_until(lambda: "cannot be reached" in caplog.text)
        with door.open():
            wait_until(lambda: tracker.run_id() != "")
            client = MlflowClient(mlflow_server)
            wait_until(lambda: client.get_metric_history(tracker.run_id(), "loss"))
        tracker.set_tags({"colour": "red"})
        wait_until(lambda: caplog.text.count("cannot be reached") == 2)
        tracker.log_metrics({"loss": 1.0}, 2)
        with door.open():
            wait_until(lambda: len(client.get_metric_history(tracker.run_id(), "loss")) == 2)
            wait_until(lambda: runs_of(mlflow_server, config)["t"].data.tags.get("colour") == "red")


def test_nested_names_are_dotted():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2]}, 10) == {"a.b": "1", "a.c.d": "None", "e": "[1, 2]"}
