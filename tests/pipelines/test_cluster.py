"""What a cluster file does to the compiled graph, and the sentences that end a contradictory one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.config import parse
from components.errors import KinoflowError
from pipelines.cluster import CREDENTIALS, RUN_VARIABLE, Cluster, choose_cluster, quantity
from pipelines.config import load_run_config
from pipelines.shell import with_run
from pipelines.text_to_video import compile_pipeline

IMAGE = "registry.example/kinoflow-python@sha256:" + "0" * 64
FILE = """
gpus: 1
queue: team-a
curate: {cpu: "16", scratch: 50Gi}
train:
  gpus: 8
  gpu_product: NVIDIA-H200
  memory: 512Gi
  shared_memory: 64Gi
  node_selector: {kinoflow.io/pool: gpu}
  tolerations:
    - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
    - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, seconds: 60}
  secrets: {hub-token: {token: HF_TOKEN}}
  environment: {NCCL_DEBUG: WARN}
  timeout_s: 86400
  retries: {count: 20, backoff_s: 30, factor: 1.5, max_backoff_s: 600}
"""


TOGETHER = {"training.parallel": "ddp", "training.batches_per_step": 8}


def compiled(
    tmp_path: Path, cluster: Cluster, overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Tasks, executors and pods of the compiled graph."""
    compile_pipeline(load_run_config("smoke", overrides), tmp_path / "graph.yaml", IMAGE, cluster)
    graph, platform = yaml.safe_load_all((tmp_path / "graph.yaml").read_text(encoding="utf-8"))
    return (
        graph["components"]["comp-exit-handler-1"]["dag"]["tasks"],
        graph["deploymentSpec"]["executors"],
        platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"],
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_training_pod_gets_all_that_the_file_says(file: Path, tmp_path: Path) -> None:
    tasks, executors, pods = compiled(tmp_path, choose_cluster(file, None, {}), TOGETHER)
    for stage in ("train", "train-2", "train-3"):
        container, pod = executors[f"exec-{stage}"]["container"], pods[f"exec-{stage}"]
        assert container["resources"]["accelerator"]["resourceCount"] == "8"
        assert container["resources"]["resourceMemoryLimit"] == container["resources"]["resourceMemoryRequest"]
        assert container["env"] == [{"name": "NCCL_DEBUG", "value": "WARN"}]
        assert pod["nodeSelector"]["labels"] == {"kinoflow.io/pool": "gpu", "nvidia.com/gpu.product": "NVIDIA-H200"}
        assert pod["emptyDirMounts"] == [
            {"volumeName": "shared-memory", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "64Gi"}
        ]
        assert [one.get("effect") for one in pod["tolerations"]] == ["NoSchedule", "NoExecute"]
        assert pod["tolerations"][1]["tolerationSeconds"] == "60"
        names = {key["envVar"] for secret in pod["secretAsEnv"] for key in secret["keyToEnv"]}
        assert names == {*CREDENTIALS.values(), "HF_TOKEN"}
        assert pod["activeDeadlineSeconds"] == "86400"
        assert tasks[stage]["retryPolicy"] == {
            "maxRetryCount": 20, "backoffDuration": "30s", "backoffFactor": 1.5, "backoffMaxDuration": "600s",
        }  # fmt: skip


def test_every_kind_of_task_has_its_own_pods(file: Path, tmp_path: Path) -> None:
    tasks, executors, pods = compiled(tmp_path, choose_cluster(file, None, {}), TOGETHER)
    gpus = {
        name: executor["container"]["resources"]["accelerator"]["resourceCount"]
        for name, executor in executors.items()
        if "accelerator" in executor["container"].get("resources", {})
    }
    assert gpus == {"exec-bucket": "1", "exec-train": "8", "exec-train-2": "8", "exec-train-3": "8",
                    "exec-evaluate": "1"}  # fmt: skip
    assert pods["exec-curate"]["emptyDirMounts"][0]["mountPath"] == "/tmp"
    assert "emptyDirMounts" not in pods["exec-ingest"] and "retryPolicy" not in tasks["ingest"]
    queued = {name for name, pod in pods.items() if "podMetadata" in pod}
    assert queued == set(pods) - {"exec-configure", "exec-outcome"}
    assert all(pods[name]["podMetadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team-a"} for name in queued)


def test_a_preset_may_bring_its_cluster_and_the_command_line_has_the_last_word(file: Path) -> None:
    section = load_run_config("smoke", {"cluster": {"gpus": 2, "queue": "q"}}).cluster
    assert section and choose_cluster(None, section, {"gpus": None}) == section
    assert choose_cluster(None, section, {"gpus": 4}).gpus == 4
    assert choose_cluster(file, section, {}).queue == "team-a"
    assert choose_cluster(None, None, {}) == Cluster()


def test_where_pods_run_changes_no_component_config() -> None:
    plain, placed = load_run_config("smoke"), load_run_config("smoke", {"cluster.gpus": 8})
    assert plain.component_configs() == placed.component_configs()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpu": 1}, "gpu: unknown key"),
        ({"gpus": -1}, "gpus: .*greater than or equal to 0"),
        ({"store_secret": "Not A Name"}, "no name of a Kubernetes object"),
        ({"train": {"memory": "lots"}}, "'lots' is no quantity above 0"),
        ({"train": {"memory": "64GB"}}, "'64GB' is no quantity"),
        ({"train": {"cpu": "0"}}, "'0' is no quantity above 0"),
        ({"train": {"memory": "64Gi", "shared_memory": "64Gi"}}, "/dev/shm of 64Gi counts as memory"),
        ({"train": {"node_selector": {"a b": "c"}}}, "'a b' is no label"),
        ({"train": {"tolerations": [{"operator": "Exists", "key": "a", "value": "b"}]}}, "Exists has no value"),
        ({"train": {"tolerations": [{}]}}, "without a key tolerates everything"),
        ({"train": {"tolerations": [{"key": "a", "seconds": 5}]}}, "NoExecute only"),
        ({"train": {"tolerations": [{"key": "a", "effect": "Never"}]}}, "effect"),
        ({"train": {"secrets": {"s": {"k": "AWS_SECRET_ACCESS_KEY"}}}}, "AWS_SECRET_ACCESS_KEY is set already"),
        ({"train": {"secrets": {"s": {"k": "1X"}}}}, "'1X' is no name of a variable"),
        ({"train": {"secrets": {"S s": {"k": "X"}}}}, "'S s' is no name of a secret"),
        ({"train": {"environment": {"HF_TOKEN": "abc"}}}, "HF_TOKEN looks like a secret"),
        ({"train": {"environment": {"API_KEY": "abc"}}}, "API_KEY looks like a secret"),
        ({"train": {"environment": {"MLFLOW_TRACKING_URI": "x"}}}, "MLFLOW_TRACKING_URI is set already"),
        ({"train": {"timeout_s": 0}}, "timeout_s"),
        ({"train": {"retries": {"factor": 0.5}}}, "factor"),
        ({"train": {"gpu_product": "A", "node_selector": {"nvidia.com/gpu.product": "B"}}}, "different GPUs"),
    ],
)
def test_contradictions_are_one_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(KinoflowError, match=words) as refused:
        parse(Cluster, given, "cluster x.yaml")
    assert "cluster x.yaml" in str(refused.value) and "abc" not in str(refused.value)


def test_a_run_fills_its_id_into_the_inputs_of_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, pods = compiled(tmp_path, Cluster())
    wanted = [{"name": RUN_VARIABLE, "fieldPath": "metadata.labels['pipeline/runid']"}]
    assert all(pod["fieldPathAsEnv"] == wanted for pod in pods.values())
    inputs: dict[str, str | None] = {"config": "{run}", "out": "s3://b/x-{run}/ingest", "parent": None}
    with pytest.raises(KinoflowError, match=r"out holds \{run\}"):
        with_run(inputs)
    monkeypatch.setenv(RUN_VARIABLE, "4711")
    assert with_run(inputs) == {"config": "{run}", "out": "s3://b/x-4711/ingest", "parent": None}


def test_quantities() -> None:
    assert quantity("64Gi") == 64 * 2**30 and quantity("500m") == 0.5 and quantity("2G") == 2e9
