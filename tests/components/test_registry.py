"""Versions of registered models on a real MLflow server."""

from uuid import uuid4

import pytest
from mlflow import MlflowClient

from components.config import TrackingConfig
from components.errors import KinoflowError
from components.manifest import FileEntry, Manifest
from components.registry import find_version, list_versions, resolve, version_tags
from components.tracking import open_tracker


def published(stage: str = "stage3") -> Manifest:
    return Manifest(
        kind="checkpoint",
        files={"model.safetensors": FileEntry(size_bytes=1, sha256="ab" * 32)},
        inputs={"clips": "cd" * 32, "parent": "ef" * 32},
        config_digest="",
        code_version="",
        facts={"stage": stage, "step": 10},
        annotations={"parent": "s3://bucket/runs/a/stage2/step-00000010", "data": "s3://bucket/runs/a/bucket"},
    )


def register(name: str, checkpoint: str, metrics: dict[str, float], run: str = "") -> None:
    config = TrackingConfig(experiment="tests", run_name=run or f"run-{uuid4().hex[:8]}", source_version="e1.dir")
    with open_tracker(config, task="evaluate", params={}) as tracker:
        tracker.log_metrics(metrics, 0)
        tracker.register_model(name, checkpoint, "candidate", version_tags(checkpoint, published(), config, metrics))


@pytest.fixture
def name() -> str:
    return f"model-{uuid4().hex[:8]}"


def test_versions_say_where_they_come_from_and_how_they_did(mlflow_server: str, name: str) -> None:
    assert list_versions(name=name) == []
    register(name, "s3://bucket/runs/a/stage3/step-00000010", {"held_out_loss": 0.5, "lost": float("nan")}, "a")
    register(name, "/data/runs/b/stage3/step-00000010", {"held_out_loss": 0.4})
    newest, first = list_versions(mlflow_server, name)
    assert (newest.version, newest.aliases, first.version, first.aliases) == (2, ("candidate",), 1, ())
    assert first.checkpoint == "s3://bucket/runs/a/stage3/step-00000010" and first.metrics == {"held_out_loss": 0.5}
    assert newest.checkpoint == "/data/runs/b/stage3/step-00000010" and newest.created_ms >= first.created_ms > 0
    lineage = {key.removeprefix("kinoflow."): value for key, value in first.tags.items()}
    assert lineage.pop("scores") == '{"held_out_loss":0.5}'
    assert lineage == {
        "checkpoint": first.checkpoint, "checkpoint_digest": published().digest, "dataset_digest": "cd" * 32,
        "source_version": "e1.dir", "stage": "stage3", "parent": "s3://bucket/runs/a/stage2/step-00000010",
        "data": "s3://bucket/runs/a/bucket", "run": "a",
    }  # fmt: skip


def test_a_version_keeps_its_numbers_when_its_run_is_evaluated_again(mlflow_server: str, name: str) -> None:
    run = f"run-{uuid4().hex[:8]}"
    for loss, step in ((0.5, 10), (0.4, 20)):
        register(name, f"s3://bucket/stage3/step-{step:08d}", {"held_out_loss": loss}, run)
    newest, first = list_versions(name=name)
    assert newest.run_id == first.run_id
    assert [first.metrics, newest.metrics] == [{"held_out_loss": 0.5}, {"held_out_loss": 0.4}]


def test_a_version_made_by_hand_has_what_its_run_measured(mlflow_server: str, name: str) -> None:
    client = MlflowClient(mlflow_server)
    run = client.create_run(client.create_experiment(name))
    client.log_metric(run.info.run_id, "held_out_loss", 0.3)
    client.create_registered_model(name)
    client.create_model_version(name, "s3://bucket/by-hand", run.info.run_id)
    client.create_model_version(name, "s3://bucket/without-run")
    without, by_hand = list_versions(name=name)
    assert by_hand.checkpoint == "s3://bucket/by-hand" and by_hand.metrics == {"held_out_loss": 0.3}
    assert without.checkpoint == "s3://bucket/without-run" and without.metrics == {} and without.run_id == ""


def test_references_name_checkpoints(mlflow_server: str, name: str) -> None:
    register(name, "s3://bucket/one", {})
    register(name, "s3://bucket/two", {})
    assert resolve("s3://bucket/any") == "s3://bucket/any" and resolve("/a/path") == "/a/path"
    assert resolve(f"models:/{name}/1") == "s3://bucket/one"
    assert resolve(f"models:/{name}@candidate", mlflow_server) == "s3://bucket/two"
    with pytest.raises(KinoflowError, match=f"'{name}' has no version 7; it has the versions 1 to 2 and the aliases c"):
        resolve(f"models:/{name}/7")
    with pytest.raises(KinoflowError, match="has no alias 'champion'"):
        resolve(f"models:/{name}@champion")
    with pytest.raises(KinoflowError, match="No model 'nobody' is registered yet"):
        resolve("models:/nobody@champion")
    with pytest.raises(KinoflowError, match="names no version of a model; write models:/kinoflow@champion"):
        find_version("models:/kinoflow")


def test_no_server_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(KinoflowError, match="MLFLOW_TRACKING_URI is not set"):
        list_versions()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(KinoflowError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be reached: "):
        resolve("models:/kinoflow@champion")
