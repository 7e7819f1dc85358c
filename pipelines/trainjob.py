"""The TrainJob (Kubeflow Trainer, trainer.kubeflow.org/v1alpha1) that trains one stage on several nodes, as plain data.

The training runtime it refers to brings the pods' security, their account and who starts them all at once; the job
says how many there are, what they run and what they need. Secrets are named, never held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cluster import ADDRESSES, CREDENTIALS, QUEUE_LABEL, Placement, TrainPods, node_selector

API = ("trainer.kubeflow.org", "v1alpha1", "trainjobs")
RUN_LABEL, STAGE_LABEL = "kinoflow.io/run", "kinoflow.io/stage"
MANAGER = "kinoflow.io/pipeline"
STEP = "node"
"""Replicated job and container of a runtime in which training runs."""
SCRATCH = "/scratch"
MAX_STAGE_CHARS, DIGEST_CHARS = 24, 10


def job_name(run: str, stage: str, out: str) -> str:
    """The name of a stage's job: the same for every attempt of one run, another for any other run or place.

    Args:
        run: Kubeflow's id of the run; empty outside of it.
        stage: name of the stage.
        out: URI of the stage.
    """
    digest = hashlib.sha256(f"{run}\n{out}".encode()).hexdigest()[:DIGEST_CHARS]
    return f"kinoflow-{stage[:MAX_STAGE_CHARS].strip('-')}-{digest}"


def render(
    placement: Placement,
    arguments: Sequence[str],
    *,
    name: str,
    namespace: str,
    labels: Mapping[str, str],
    owner: Mapping[str, Any] | None = None,
    processes: int | None = None,
) -> dict[str, Any]:
    """The manifest of a job.

    Args:
        placement: where pods run.
        arguments: what `torchrun` is given; Kubeflow Trainer tells it about nodes and ranks.
        name, namespace, labels: of the job.
        owner: reference to the object (the run's workflow) with which the job goes away.
        processes: of each node; one for each GPU when absent.
    """
    cluster, pods = placement.cluster, placement.cluster.train
    gpus = cluster.gpus_of("train")
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": dict(labels)}
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": API[0], "kind": pods.runtime_kind, "name": pods.runtime},
        "trainer": {
            "image": placement.image,
            "command": ["torchrun"],
            "args": [_literal(argument) for argument in arguments],
            "numNodes": pods.nodes,
            "numProcPerNode": processes or max(gpus, 1),
            "env": _environment(placement),
            **({"resourcesPerNode": resources} if (resources := _resources(pods, gpus)) else {}),
        },
        "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": _patches(pods, labels, gpus)}],
    }
    if pods.timeout_s:
        spec["activeDeadlineSeconds"] = pods.timeout_s
    if cluster.queue:
        metadata["labels"][QUEUE_LABEL] = cluster.queue
        spec["suspend"] = True  # until Kueue admits all of its pods
    if owner:
        metadata["ownerReferences"] = [dict(owner)]
    return {"apiVersion": "/".join(API[:2]), "kind": "TrainJob", "metadata": metadata, "spec": spec}


def _literal(argument: str) -> str:
    """An argument in which Kubernetes looks up no variable: it reads `$$` as a dollar."""
    return argument.replace("$(", "$$(")


def _environment(placement: Placement) -> list[dict[str, Any]]:
    cluster, pods = placement.cluster, placement.cluster.train
    secrets = {cluster.store_secret: CREDENTIALS, **dict(sorted(pods.secrets.items()))}
    return [
        *({"name": name, "valueFrom": {"configMapKeyRef": {"name": cluster.addresses, "key": name}}}
          for name in ADDRESSES),
        *({"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
          for secret, keys in secrets.items() for key, variable in keys.items()),
        *([{"name": name, "value": SCRATCH} for name in ("HOME", "TMPDIR")] if pods.scratch else []),
        *({"name": name, "value": value} for name, value in sorted(pods.environment.items())),
    ]  # fmt: skip


def _resources(pods: TrainPods, gpus: int) -> dict[str, Any]:
    sizes = {name: size for name, size in (("cpu", pods.cpu), ("memory", pods.memory)) if size}
    limits = {**sizes, **({pods.gpu_resource: str(gpus)} if gpus else {})}
    return {kind: given for kind, given in (("requests", sizes), ("limits", limits)) if given}


def _patches(pods: TrainPods, labels: Mapping[str, str], gpus: int) -> dict[str, Any]:
    """What a job may change of its runtime's pods only through this list."""
    volumes = []
    if pods.shared_memory:
        volumes.append(("shm", "/dev/shm", {"medium": "Memory", "sizeLimit": pods.shared_memory}))
    if pods.scratch:
        volumes.append(("scratch", SCRATCH, {"sizeLimit": pods.scratch}))
    spec: dict[str, Any] = {
        "serviceAccountName": pods.service_account,
        "nodeSelector": node_selector(pods, with_gpus=bool(gpus)),
        "tolerations": [_toleration(one) for one in pods.tolerations],
        "volumes": [{"name": name, "emptyDir": kind} for name, _, kind in volumes],
        "containers": [
            {"name": STEP, "volumeMounts": [{"name": name, "mountPath": path} for name, path, _ in volumes]}
        ] if volumes else [],
    }  # fmt: skip
    pod = {"metadata": {"labels": dict(labels)}, "spec": {key: value for key, value in spec.items() if value}}
    return {"template": {"spec": {"replicatedJobs": [{"name": STEP, "template": {"spec": {"template": pod}}}]}}}


def _toleration(one: Any) -> dict[str, Any]:
    given = {
        "key": one.key, "operator": one.operator, "value": one.value, "effect": one.effect,
        "tolerationSeconds": one.seconds,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value not in ("", None)}
