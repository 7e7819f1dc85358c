"""Wrong values are refused: by the schema, or by a sentence that says what to do."""

from typing import Any

import pytest
from helm_python import HelmRenderError, HelmValuesError

from tests.charts.rendering import render

DIGEST = "registry.example.org/kinoflow@sha256:" + "0" * 64
POOL = {
    "name": "gpu", "nodeClass": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"},
    "capacityTypes": ["spot"], "maxGpus": 8,
}  # fmt: skip
RUNTIME = {
    "name": "r", "image": "kinoflow:1", "nodes": 1, "gpusPerNode": 1, "cpu": "8", "memory": "64Gi",
    "sharedMemory": "8Gi",
}  # fmt: skip
FLAVOR = {"name": "gpu", "gpus": 8, "cpu": "8", "memory": "8Gi"}
POSTGRESQL = {"kind": "postgresql", "postgresql": {"host": "db", "secret": "db"}}


def nested(path: str, value: object) -> dict[str, Any]:
    """{"a": {"b": value}} of "a.b"."""
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


BY_SCHEMA: list[tuple[str, str, object]] = [
    ("platform", "storeSecrets", "typo"),
    ("platform", "storeSecret", ""),
    ("platform", "storeSecret", "Upper_Case"),
    ("platform", "mlflow.imagee", "x"),
    ("platform", "mlflow.image", "ghcr.io/mlflow/mlflow"),
    ("platform", "mlflow.image", "ghcr.io/mlflow/mlflow:latest"),
    ("platform", "mlflow.replicas", 0),
    ("platform", "mlflow.replicas", "2"),
    ("platform", "mlflow.artifacts", "/mlflow"),
    ("platform", "mlflow.artifacts", "s3://UPPER/x"),
    ("platform", "mlflow.allowedHosts", "mlflow"),
    ("platform", "mlflow.allowedOrigins", ["mlflow.example.org"]),
    ("platform", "mlflow.database.kind", "mysql"),
    ("platform", "mlflow.database.storage", "10"),
    ("platform", "mlflow.database.postgresql.password", "in the values"),
    ("platform", "mlflow.database.postgresql.port", 70000),
    ("platform", "mlflow.resources.limits", None),
    ("platform", "mlflow.resources", {"requests": {"cpu": "1", "memory": "1G"}, "limits": {"memory": "2Gi"}}),
    ("platform", "store.endpoint", "minio:9000"),
    ("platform", "store.endpoint", "https://key:secret@minio:9000"),
    ("platform", "store.accessKey", "in the values"),
    ("platform", "store.storage", "500GB"),
    ("platform", "store.buckets", ["A_Bucket"]),
    ("platform", "store.maxUnavailable", 2),
    ("platform", "backup.schedule", "every night"),
    ("platform", "backup.keep", 0),
    ("platform", "backup.restoreFrom", "../newest"),
    ("platform", "backup.destination", "file:///backups"),
    ("platform", "registration.image", "registry.example.org/kinoflow-submit:1"),
    ("platform", "registration.trainImage", "registry.example.org/kinoflow-train:1"),
    ("platform", "registration.dataImage", "registry.example.org/kinoflow-data:latest"),
    ("platform", "registration.host", "ml-pipeline:8888"),
    ("platform", "queues.apiVersion", "v1"),
    ("platform", "queues.preemption", "Always"),
    ("platform", "queues.flavors", []),
    ("platform", "queues.flavors", [{"name": "gpu"}]),
    ("platform", "queues.flavors", [{**FLAVOR, "gpu": 8}]),
    ("platform", "priorityClasses", [{"name": "a", "value": 2_000_000_000, "preempts": True, "description": "x"}]),
    ("platform", "networkPolicy.externalCidrs", ["10.0.0.1"]),
    ("platform", "clientNamespaceLabels", {"kinoflow.io/workspace": True}),
    ("workspace", "storeEndpoint", "http://localhost:9000"),
    ("workspace", "mlflowTrackingUri", "sqlite:///mlflow.db"),
    ("workspace", "serviceAccount.name", "default"),
    ("workspace", "quota.gpus", -1),
    ("workspace", "quota.gpus", 1.5),
    ("workspace", "quota.memory", "1TB"),
    ("workspace", "limits.default.memory", None),
    ("workspace", "localQueue.clusterQueue", ""),
    ("workspace", "runtimes", [{**RUNTIME, "nodes": 0}]),
    ("workspace", "runtimes", [{**RUNTIME, "gpus": 8}]),
    ("workspace", "runtimes", [{**RUNTIME, "gang": "yarn"}]),
    ("workspace", "networkPolicy.apiServerCidrs", []),
    ("workspace", "networkPolicy.apiServerPorts", [0]),
    ("workspace", "rbac.everything", True),
    ("gpu-nodes", "mig.strategy", "all"),
    ("gpu-nodes", "timeSlicing.replicas", 0),
    ("gpu-nodes", "nodeSelector", {"nvidia.com/gpu.present": None}),
    ("gpu-nodes", "tolerations", [{"key": "nvidia.com/gpu"}]),
    ("gpu-nodes", "tolerations", [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "Never"}]),
    ("gpu-nodes", "health.periodSeconds", 1),
    ("gpu-nodes", "health.maxTemperatureC", 20),
    ("gpu-nodes", "health.apiServerCidrs", []),
    ("gpu-nodes", "metrics.intervalMs", 10),
    ("gpu-nodes", "devicePlugin.privileged", True),
    ("gpu-nodes", "nodePools", [{**POOL, "capacityTypes": ["cheap"]}]),
    ("gpu-nodes", "nodePools", [{**POOL, "maxGpus": 0}]),
    ("gpu-nodes", "nodePools", [{**POOL, "nodeClass": "gpu"}]),
    ("gpu-nodes", "global", {"imageRegistry": "x"}),
]


@pytest.mark.parametrize(
    ("chart", "path", "value"), BY_SCHEMA, ids=[f"{c}-{p}-{i}" for i, (c, p, _) in enumerate(BY_SCHEMA)]
)
def test_the_schema_refuses_and_names_the_place(chart: str, path: str, value: object) -> None:
    with pytest.raises(HelmValuesError) as refusal:
        render(chart, nested(path, value))
    parent, _, leaf = path.rpartition(".")
    assert leaf in str(refusal.value) or parent.replace(".", "/") in str(refusal.value)


BY_SENTENCE: list[tuple[str, dict[str, Any], str]] = [
    ("platform", {"store": {"endpoint": "https://s3.example.org"}}, "store.endpoint names another one"),
    ("platform", {"store": {"enabled": False}}, "name the endpoint"),
    ("platform", {"store": {"enabled": False, "endpoint": "https://s3.example.org"}}, "networkPolicy.externalCidrs"),
    ("platform", {"store": {"buckets": ["kinoflow"]}}, "mlflow.artifacts lies in a bucket"),
    ("platform", {"store": {"buckets": ["mlflow"]}}, "backup.destination lies in a bucket"),
    ("platform", {"backup": {"destination": "s3://mlflow/artifacts/backups"}}, "below mlflow.artifacts"),
    ("platform", {"mlflow": {"replicas": 2}}, "SQLite serves one server"),
    ("platform", {"mlflow": {"database": {"postgresql": {"host": "db"}}}}, "mlflow.database.kind is sqlite"),
    ("platform", {"mlflow": {"database": {"kind": "postgresql"}}}, "postgresql.host must name the server"),
    (
        "platform",
        {"mlflow": {"database": {"kind": "postgresql", "postgresql": {"host": "db"}}}},
        "username and password",
    ),
    ("platform", {"mlflow": {"database": POSTGRESQL}}, "PostgreSQL server, so networkPolicy.externalCidrs"),
    (
        "platform",
        {
            "mlflow": {
                "database": {"kind": "postgresql", "postgresql": {"host": "d", "secret": "d", "sslMode": "verify-ca"}}
            }
        },
        "needs the authority",
    ),
    ("platform", {"mlflow": {"maxUnavailable": 2}}, "above mlflow.replicas"),
    (
        "platform",
        {"mlflow": {"replicas": 2, "database": POSTGRESQL}, "networkPolicy": {"externalCidrs": ["10.0.0.0/8"]}},
        "no node could ever be drained",
    ),
    ("platform", {"mlflow": {"ingress": {"enabled": True}}}, "must name the host of the UI"),
    ("platform", {"mlflow": {"ingress": {"host": "a.example.org"}}}, "enable the ingress or empty the host"),
    ("platform", {"registration": {"enabled": True}}, "name Kinoflow's image `submit` by digest"),
    ("platform", {"registration": {"enabled": True, "image": f"k@sha256:{'0' * 64}"}}, "image `train` by digest"),
    ("platform", {"queues": {"flavors": [FLAVOR, FLAVOR]}}, "names gpu twice"),
    (
        "platform",
        {"priorityClasses": [{"name": "system-x", "value": 1, "preempts": True, "description": "x"}]},
        "belong to Kubernetes",
    ),
    ("workspace", {"storeEndpoint": "https://s3.example.org"}, "networkPolicy.storeCidrs must name its addresses"),
    ("workspace", {"mlflowTrackingUri": "https://m.example.org"}, "networkPolicy.mlflowCidrs must name its addresses"),
    ("workspace", {"storeEndpoint": "http://mlflow.kinoflow:5000"}, "are the same address"),
    ("workspace", {"networkPolicy": {"platformNamespace": "team-or-platform"}}, "the team's own namespace"),
    ("workspace", {"limits": {"enabled": False}}, "without limits.enabled"),
    ("workspace", {"limits": {"default": {"cpu": "1", "memory": "2Ti"}}}, "limits.default.memory is above"),
    ("workspace", {"limits": {"default": {"cpu": "200000m", "memory": "1Gi"}}}, "limits.default.cpu is above"),
    ("workspace", {"runtimes": [RUNTIME, RUNTIME]}, "names r twice"),
    ("workspace", {"runtimes": [{**RUNTIME, "sharedMemory": "64Gi"}]}, "must be below memory 64Gi"),
    (
        "workspace",
        {"runtimes": [{**RUNTIME, "nodes": 2, "gpusPerNode": 8}]},
        "needs 16 GPUs (2 nodes of 8), but quota.gpus is 8",
    ),
    ("workspace", {"runtimes": [{**RUNTIME, "nodes": 3, "memory": "400Gi"}]}, "but quota.memory is 1Ti"),
    ("workspace", {"runtimes": [{**RUNTIME, "nodes": 3, "cpu": "64"}]}, "but quota.cpu is 128"),
    ("workspace", {"quota": {"memory": "9Ti"}, "runtimes": [{**RUNTIME, "memory": "2Ti"}]}, "above limits.max.memory"),
    ("workspace", {"quota": {"cpu": "999"}, "runtimes": [{**RUNTIME, "cpu": "256"}]}, "above limits.max.cpu"),
    ("gpu-nodes", {"timeSlicing": {"replicas": 2}, "mig": {"strategy": "single"}}, "choose one of them"),
    ("gpu-nodes", {"devicePlugin": {"enabled": False}, "mig": {"strategy": "single"}}, "have no effect"),
    ("gpu-nodes", {"runtimeClass": {"name": ""}}, "runtimeClass.name is empty"),
    ("gpu-nodes", {"metrics": {"enabled": False, "alerts": {"enabled": True}}}, "nothing to scrape"),
    ("gpu-nodes", {"metrics": {"alerts": {"enabled": True}}}, "enable both"),
    (
        "gpu-nodes",
        {"metrics": {"serviceMonitor": {"enabled": True, "intervalSeconds": 10}}},
        "the same sample would be scraped twice",
    ),
    ("gpu-nodes", {"health": {"cordon": False}}, "health.admissionPolicy would guard an account without rights"),
    ("gpu-nodes", {"nodePools": [POOL, POOL]}, "names gpu twice"),
    ("gpu-nodes", {"nodePools": [{**POOL, "labels": {"nvidia.com/gpu.present": "false"}}]}, "remove it from the pool"),
    ("gpu-nodes", {"nodePools": [POOL], "tolerations": []}, "could not run there"),
]


@pytest.mark.parametrize(("chart", "values", "sentence"), BY_SENTENCE, ids=[f"{c}-{s[:40]}" for c, _, s in BY_SENTENCE])
def test_contradictions_end_with_a_sentence(chart: str, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmRenderError) as refusal:
        render(chart, values)
    assert sentence in str(refusal.value)


def test_there_are_at_least_forty_cases() -> None:
    assert len(BY_SCHEMA) + len(BY_SENTENCE) >= 40
