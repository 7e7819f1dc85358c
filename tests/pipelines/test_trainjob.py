"""The TrainJob of a stage as plain data: valid, complete, named from the run, and without any secret."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from components.errors import KinoflowError
from pipelines.cluster import ADDRESSES, CREDENTIALS, TRAINJOB_VARIABLE, Cluster, Placement
from pipelines.config import load_run_config
from pipelines.trainjob import job_name, render
from tests.pipelines.test_cluster import IMAGE, compiled

SCHEMA = json.loads((Path(__file__).parent / "schemas" / "TrainJob.json").read_text())
LARGE = Cluster.model_validate({
    "queue": "team-a",
    "train": {
        "nodes": 2, "gpus": 8, "runtime": "kinoflow-2x8", "cpu": "64", "memory": "900Gi", "shared_memory": "128Gi",
        "scratch": "500Gi", "gpu_product": "NVIDIA-H200", "service_account": "kinoflow", "timeout_s": 86400,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "secrets": {"hub-token": {"token": "HF_TOKEN"}}, "environment": {"NCCL_DEBUG": "WARN"},
    },
})  # fmt: skip
SMALL = Cluster.model_validate({"train": {"gpus": 1, "runtime": "kinoflow-1x1"}})
ARGUMENTS = (
    "-m",
    "components.train",
    "--config",
    '{"name": "stage1", "text": "$(HOME) $5"}',
    "--out",
    "s3://b/r/stage1",
)
OWNER = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "text-to-video-abc", "uid": "u-1"}


def job(cluster: Cluster, **more: Any) -> dict[str, Any]:
    labels = {"kinoflow.io/run": "4711"}
    return render(Placement(image=IMAGE, cluster=cluster), ARGUMENTS, name="kinoflow-stage1-0", namespace="team-a",
                  labels=labels, **more)  # fmt: skip


def faults(manifest: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(manifest)]


@pytest.mark.parametrize(("cluster", "nodes", "gpus"), [(LARGE, 2, 8), (SMALL, 1, 1)])
def test_a_job_is_valid_against_the_definition_and_the_models(cluster: Cluster, nodes: int, gpus: int) -> None:
    manifest = job(cluster, owner=OWNER)
    assert faults(manifest) == []
    trainer = manifest["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (nodes, gpus)
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == str(gpus)
    models = pytest.importorskip("kubeflow_trainer_api.models")
    read = models.TrainerV1alpha1TrainJob.from_dict(copy.deepcopy(manifest))
    assert json.loads(json.dumps(read.to_dict(), default=str)) == manifest


def test_the_definition_notices_mistakes() -> None:
    for path, wrong in (
        (["spec", "trainer", "numProcPerNode"], "auto"),
        (["spec", "trainer", "nodes"], 2),
        (["spec", "runtimePatches", 0, "trainingRuntimeSpec", "template", "spec", "replicatedJobs", 0, "name"], 1),
        (["spec", "runtimeRef"], {}),
        (["metadata", "name"], "Stage_1"),
    ):
        manifest = job(LARGE)
        node: Any = manifest
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = wrong
        assert faults(manifest), path


def test_a_large_job_says_all_that_the_cluster_file_says() -> None:
    manifest = job(LARGE, owner=OWNER)
    spec = manifest["spec"]
    assert manifest["metadata"]["labels"] == {"kinoflow.io/run": "4711", "kueue.x-k8s.io/queue-name": "team-a"}
    assert spec["suspend"] is True and spec["activeDeadlineSeconds"] == 86400
    assert manifest["metadata"]["ownerReferences"] == [OWNER]
    trainer = spec["trainer"]
    assert trainer["command"] == ["torchrun"] and trainer["args"][3] == '{"name": "stage1", "text": "$$(HOME) $5"}'
    named = {one["name"]: one.get("valueFrom", one.get("value")) for one in trainer["env"]}
    assert set(named) == {*ADDRESSES, *CREDENTIALS.values(), "HF_TOKEN", "NCCL_DEBUG", "HOME", "TMPDIR"}
    assert named["HF_TOKEN"] == {"secretKeyRef": {"name": "hub-token", "key": "token"}}
    assert named["MLFLOW_TRACKING_URI"]["configMapKeyRef"]["name"] == "kinoflow-addresses"
    (patched,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = patched["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["serviceAccountName"] == "kinoflow"
    mounts = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"/dev/shm": "shm", "/scratch": "scratch"}
    assert [one["emptyDir"].get("sizeLimit") for one in pod["volumes"]] == ["128Gi", "500Gi"]


def test_a_small_job_patches_nothing_it_need_not() -> None:
    spec = job(SMALL)["spec"]
    assert "suspend" not in spec and "activeDeadlineSeconds" not in spec
    (patched,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert patched["template"]["spec"]["template"]["spec"] == {}


def test_a_name_is_one_of_run_and_place() -> None:
    first = job_name("run-1", "stage1", "s3://b/r/stage1")
    assert first == job_name("run-1", "stage1", "s3://b/r/stage1")
    assert len({first, job_name("run-2", "stage1", "s3://b/r/stage1"), job_name("run-1", "stage1", "s3://c")}) == 3
    long = job_name("run-1", "a-very-long-name-of-a-stage-that-goes-on", "s3://c")
    assert len(long) < 50 and not faults({**job(SMALL), "metadata": {"name": long}})


def test_the_task_that_waits_takes_no_gpu_and_holds_no_secret_of_the_job(tmp_path: Path) -> None:
    overrides = {"training.parallel": "ddp", "training.batches_per_step": 16}
    _, executors, pods = compiled(tmp_path, LARGE, overrides)
    for stage in ("train", "train-2", "train-3"):
        container, pod = executors[f"exec-{stage}"]["container"], pods[f"exec-{stage}"]
        assert "accelerator" not in container.get("resources", {})
        assert "nodeSelector" not in pod and "tolerations" not in pod and "activeDeadlineSeconds" not in pod
        assert "podMetadata" not in pod  # Kueue admits the job
        (told,) = [one["value"] for one in container["env"] if one["name"] == TRAINJOB_VARIABLE]
        assert Placement.model_validate_json(told) == Placement(image=IMAGE, cluster=LARGE)
        assert {one["name"] for one in pod["fieldPathAsEnv"]} == {"KINOFLOW_RUN", "KINOFLOW_POD", "KINOFLOW_NAMESPACE"}


@pytest.mark.parametrize(
    ("cluster", "training", "words"),
    [
        ({"train": {"gpus": 8}}, {}, r"8 processes train, but training.parallel is 'none'"),
        ({"train": {"gpus": 8}}, {"parallel": "ddp", "batches_per_step": 4}, r"choose a multiple of 8"),
        ({"train": {"nodes": 2, "gpus": 8, "runtime": "r"}}, {"parallel": "ddp", "batches_per_step": 8},
         r"2 nodes with 8 processes each .*choose a multiple of 16"),
        ({"train": {"gpus": 6}}, {"parallel": "ddp", "sequence_parallel": 4}, r"groups of training.sequence_paral"),
        ({"train": {"gpus": 8}}, {"parallel": "ddp", "processes": 2}, r"processes is 2, but training pods have 8 GPUs"),
    ],
)  # fmt: skip
def test_gpus_that_would_idle_are_refused_at_once(
    cluster: dict[str, Any], training: dict[str, Any], words: str, tmp_path: Path
) -> None:
    overrides = {f"training.{name}": value for name, value in training.items()}
    with pytest.raises(KinoflowError, match=words):
        compiled(tmp_path, Cluster.model_validate(cluster), overrides)


def test_several_nodes_need_a_runtime() -> None:
    with pytest.raises(ValueError, match="2 nodes train by a TrainJob, which needs a runtime"):
        Cluster.model_validate({"train": {"nodes": 2, "gpus": 8}})
    assert load_run_config("smoke", {"cluster": {"train": {"runtime": "r"}}}).cluster is not None
