"""Lint, render and strict validation of every chart x example x Kubernetes version, and what the objects say."""

import json
import re
from typing import Any

import click
import helm_python
import pytest
import typer
import yaml

from pipelines.cli import app
from pipelines.cluster import ADDRESSES, CREDENTIALS, GPU, Cluster
from tests.charts.rendering import (
    CASES,
    CHARTS,
    CHARTS_FOLDER,
    NAMESPACE,
    VERSIONS,
    faults_of,
    find,
    manifests,
    pod_of,
    render,
    values_of,
)

ERROR = 3  # Helm's severities: 1 information, 2 warning, 3 error; strict counts warnings as errors
CLUSTER_WIDE = {
    "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass", "PriorityClass", "RuntimeClass", "ClusterRole",
    "ClusterRoleBinding", "NodePool", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
}  # fmt: skip


def test_there_are_three_charts_with_examples_and_seven_versions_or_more() -> None:
    assert CHARTS == ("gpu-nodes", "platform", "workspace")
    assert all(sum(chart == name for name, _ in CASES) >= 4 for chart in CHARTS)
    assert VERSIONS[0] == "1.31"
    assert len(VERSIONS) >= 7


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_lint_finds_nothing(chart: str, case: str) -> None:
    for version in (VERSIONS[0], VERSIONS[-1]):
        report = helm_python.lint(
            str(CHARTS_FOLDER / chart), values_of(chart, case), strict=True, kube_version=f"v{version}.0", namespace="a"
        )
        said = [message for message in report["messages"] if message["severity"] >= ERROR - 1]
        assert (said, report["errors"]) == ([], [])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("chart", "case"), CASES)
def test_every_object_is_valid_for_every_kubernetes_version(chart: str, case: str, version: str) -> None:
    faults = [
        f"{each['kind']} {each['metadata']['name']}: {fault}"
        for each in manifests(chart, case, version)
        for fault in faults_of(each, version)
    ]
    assert faults == []


MISTAKES: list[tuple[str, str, str, str, list[Any], Any]] = [
    ("platform", "default", "Deployment", "mlflow", ["spec", "template", "spec", "containers", 0, "imagee"], "x"),
    ("platform", "default", "Deployment", "mlflow", ["spec", "replicas"], "one"),
    ("platform", "external", "ClusterQueue", "kinoflow", ["spec", "cohort"], "of the older version"),
    ("platform", "queues", "ClusterQueue", "kinoflow", ["spec", "cohortName"], "of the newer version"),
    ("workspace", "training", "TrainingRuntime", "kinoflow-2x8", ["spec", "mlPolicy", "numNode"], 2),
    ("workspace", "training", "LocalQueue", "kinoflow", ["spec", "queue"], "x"),
    ("gpu-nodes", "full", "NodePool", "gpu-training", ["spec", "limits"], 3),
    ("gpu-nodes", "full", "ServiceMonitor", "kinoflow-gpu-metrics", ["spec", "endpoints", 0, "interval"], "30"),
]


@pytest.mark.parametrize(("chart", "case", "kind", "name", "path", "wrong"), MISTAKES)
def test_validation_notices_a_mistake(
    chart: str, case: str, kind: str, name: str, path: list[Any], wrong: object
) -> None:
    manifest = find(manifests(chart, case), kind, name)
    assert faults_of(manifest, "1.35") == []
    node: Any = manifest
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = wrong
    assert faults_of(manifest, "1.35") != []


def test_validation_notices_a_mistake_in_the_pod_of_a_training_runtime() -> None:
    runtime = find(manifests("workspace", "training"), "TrainingRuntime", "kinoflow-2x8")
    pod = pod_of(runtime)
    assert pod is not None
    pod["spec"]["containers"][0]["volumeMount"] = []
    assert any("volumeMount" in fault for fault in faults_of(runtime, "1.35"))


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_objects_are_named_once_labelled_and_in_the_release_namespace(chart: str, case: str) -> None:
    objects = manifests(chart, case)
    names = [(each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))
    for each in objects:
        metadata = each["metadata"]
        assert metadata["labels"]["app.kubernetes.io/part-of"] == "kinoflow"
        assert metadata.get("namespace") == (None if each["kind"] in CLUSTER_WIDE else NAMESPACE)


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_what_pods_name_exists_and_services_select_pods(chart: str, case: str) -> None:
    objects = manifests(chart, case)
    have = {(each["kind"], each["metadata"]["name"]) for each in objects}
    pods = [pod for each in objects if (pod := pod_of(each))]
    for pod in pods:
        assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in have
        for volume in pod["spec"].get("volumes", []):
            if "configMap" in volume and volume["name"] != "authority":  # of the values, as secrets are
                assert ("ConfigMap", volume["configMap"]["name"]) in have
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in have
        mounted = {mount["name"] for each in pod["spec"]["containers"] for mount in each.get("volumeMounts", [])}
        assert mounted <= {volume["name"] for volume in pod["spec"]["volumes"]} | {"data"}
    for service in (each for each in objects if each["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        ports = {
            port["name"]
            for pod in pods
            if selector <= pod["metadata"]["labels"].items()
            for container in pod["spec"]["containers"]
            for port in container.get("ports", [])
        }
        assert ports == {port["targetPort"] for port in service["spec"]["ports"]}


def test_the_workspace_has_the_names_the_compiled_pipeline_asks_for() -> None:
    objects = manifests("workspace", "default")
    cluster = Cluster()
    assert set(find(objects, "ConfigMap", cluster.addresses)["data"]) == set(ADDRESSES)
    runtime = pod_of(find(manifests("workspace", "training"), "TrainingRuntime", "kinoflow-2x8"))
    assert runtime is not None
    container = runtime["spec"]["containers"][0]
    secrets = {
        item["valueFrom"]["secretKeyRef"]["key"]: item["name"] for item in container["env"] if "valueFrom" in item
    }
    assert secrets == CREDENTIALS
    assert {item["valueFrom"]["secretKeyRef"]["name"] for item in container["env"] if "valueFrom" in item} == {
        cluster.store_secret
    }
    assert container["resources"]["limits"][GPU] == 8
    assert f"requests.{GPU}" in find(objects, "ResourceQuota", "kinoflow")["spec"]["hard"]


def test_the_store_service_and_mlflow_answer_where_the_workspace_looks() -> None:
    text = render("workspace", {})
    assert "http://kinoflow-store.kinoflow:9000" in text
    platform = manifests("platform", "default")
    assert find(platform, "Service", "kinoflow-store")["spec"]["ports"][0]["port"] == 9000
    assert find(platform, "Service", "mlflow")["spec"]["ports"][0]["port"] == 5000


def test_mlflow_answers_to_its_service_names_and_the_ingress_and_trusts_their_origins() -> None:
    for case in ("default", "external"):
        pod = pod_of(find(manifests("platform", case), "Deployment", "mlflow"))
        assert pod is not None
        arguments = dict(each.removeprefix("--").split("=", 1) for each in pod["spec"]["containers"][0]["args"])
        hosts = arguments["allowed-hosts"].split(",")
        domain = "k8s.example.org" if case == "external" else "cluster.local"
        for name in ("mlflow", f"mlflow.{NAMESPACE}", f"mlflow.{NAMESPACE}.svc", f"mlflow.{NAMESPACE}.svc.{domain}"):
            assert {name, f"{name}:*"} <= set(hosts)
        published = case == "external"
        assert ("mlflow.example.org" in hosts) is published
        assert ("https://mlflow.example.org" in arguments["cors-allowed-origins"].split(",")) is published
        assert ("tracking.internal" in hosts) is published


def test_the_network_policies_of_both_charts_meet() -> None:
    platform = manifests("platform", "default")
    entrance = find(platform, "NetworkPolicy", "mlflow")["spec"]["ingress"][0]["from"]
    assert {"namespaceSelector": {"matchLabels": {"kinoflow.io/workspace": "true"}}} in entrance
    exits = find(manifests("workspace", "default"), "NetworkPolicy", "kinoflow-needed")["spec"]["egress"]
    selectors = [to["podSelector"]["matchLabels"] for rule in exits for to in rule["to"] if "namespaceSelector" in to
                 and "podSelector" in to]  # fmt: skip
    for name, kind in (("mlflow", "Deployment"), ("kinoflow-store", "StatefulSet")):
        labels = find(platform, kind, name)["spec"]["template"]["metadata"]["labels"].items()
        assert any(selector.items() <= labels for selector in selectors)


def test_an_external_store_is_reached_by_address_and_port() -> None:
    exits = find(manifests("workspace", "external"), "NetworkPolicy", "kinoflow-needed")["spec"]["egress"]
    assert {"to": [{"ipBlock": {"cidr": "52.219.0.0/16"}}], "ports": [{"port": 443}]} in exits


def test_the_clouds_metadata_service_is_out_of_reach() -> None:
    for chart, name in (("workspace", "kinoflow-needed"), ("gpu-nodes", "kinoflow-gpu-health")):
        exits = find(manifests(chart, "default"), "NetworkPolicy", name)["spec"]["egress"]
        blocks = [to["ipBlock"] for rule in exits for to in rule["to"] if "ipBlock" in to]
        wide = [block for block in blocks if block["cidr"] == "0.0.0.0/0"]
        assert wide
        assert all(block["except"] == ["169.254.169.254/32"] for block in wide)


def test_pods_get_the_scripts_that_the_tests_run() -> None:
    for chart, name in (("platform", "kinoflow-scripts"), ("gpu-nodes", "kinoflow-gpu-health")):
        for file, text in find(manifests(chart, "default"), "ConfigMap", name)["data"].items():
            assert text.rstrip() == (CHARTS_FOLDER / chart / "files" / file).read_text().rstrip()


def test_roles_are_small() -> None:
    rules = find(manifests("workspace", "default"), "Role", "kinoflow")["rules"]
    for rule in rules:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        assert "secrets" not in rule["resources"] or (rule["resourceNames"] and rule["verbs"] == ["get"])
        assert "pods" not in rule["resources"] or not {"create", "delete"} & set(rule["verbs"])
    (rule,) = find(manifests("gpu-nodes", "default"), "ClusterRole", "kinoflow-gpu-health")["rules"]
    assert rule == {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "patch"]}


def test_taints_of_node_pools_and_flavors_are_tolerated() -> None:
    pool = find(manifests("gpu-nodes", "full"), "NodePool", "gpu-training")["spec"]["template"]
    (taint,) = pool["spec"]["taints"]
    plugin = pod_of(find(manifests("gpu-nodes", "full"), "DaemonSet", "kinoflow-device-plugin"))
    assert plugin is not None
    assert plugin["spec"]["nodeSelector"].items() <= pool["metadata"]["labels"].items()
    for tolerations in (
        plugin["spec"]["tolerations"],
        find(manifests("platform", "external"), "ResourceFlavor", "h100")["spec"]["tolerations"],
    ):
        assert {"key": taint["key"], "operator": "Exists", "effect": taint["effect"]} in tolerations


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_are_exported() -> None:
    objects = manifests("gpu-nodes", "full")
    counters = find(objects, "ConfigMap", "kinoflow-gpu-counters")["data"]["counters.csv"]
    exported = {line.split(",")[0] for line in counters.splitlines() if line}
    dashboard = find(objects, "ConfigMap", "kinoflow-gpu-dashboard")["data"]["kinoflow-gpu.json"]
    rules = json.dumps(find(objects, "PrometheusRule", "kinoflow-gpu")["spec"])
    asked = set(re.findall(r"DCGM_FI_[A-Z_]+", json.dumps(json.loads(dashboard)) + rules))
    assert asked
    assert asked <= exported


def test_sharing_and_slices_reach_the_plugin() -> None:
    for case, expected in (("shared", {"replicas": 4}), ("full", {"strategy": "mixed"})):
        text = find(manifests("gpu-nodes", case), "ConfigMap", "kinoflow-device-plugin")["data"]["config.yaml"]
        config = yaml.safe_load(text)
        assert config["flags"]["migStrategy"] == expected.get("strategy", "none")
        sharing = config.get("sharing", {}).get("timeSlicing", {}).get("resources", [{}])
        assert sharing[0].get("replicas") == expected.get("replicas")


def test_the_registration_job_runs_the_command_it_says() -> None:
    objects = manifests("platform", "external")
    pod = pod_of(find(objects, "Job", "kinoflow-registration"))
    assert pod is not None
    container = pod["spec"]["containers"][0]
    assert container["command"] == ["kinoflow", "submit"]
    assert container["args"][0] == "--register-only"
    assert container["image"].startswith("registry.example.org/kinoflow-submit@sha256:")
    commands = typer.main.get_command(app)
    submit = commands.get_command(click.Context(commands), "submit")  # type: ignore[attr-defined]
    given = submit.make_context("submit", list(container["args"])).params
    assert given["register_only"] is True
    assert given["image"].startswith("registry.example.org/kinoflow-train@sha256:")
    assert (given["host"], given["namespace"]) == ("http://ml-pipeline.kubeflow:8888", "team-a")
    assert "Job" not in {each["kind"] for each in manifests("platform", "default")}


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_notes_say_what_to_do_next(chart: str, case: str) -> None:
    notes = render(chart, values_of(chart, case), notes=True)
    assert "Next" in notes
    assert "kubectl" in notes
    assert "<no value>" not in notes + render(chart, values_of(chart, case))


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_no_secret_is_made_and_nothing_reads_one_but_by_name(chart: str, case: str) -> None:
    for each in manifests(chart, case):
        assert each["kind"] != "Secret"
        pod = pod_of(each)
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"] if pod else []:
            for item in container.get("env", []):
                secret = re.search(r"KEY|PASSWORD|TOKEN$|SECRET|PGUSER", item["name"])
                assert not secret or "secretKeyRef" in item.get("valueFrom", {}), item["name"]
            assert not re.search(r"[a-z0-9]+://[^/\s]*:[^/\s]*@", " ".join(container.get("args", [])))


def test_the_account_may_do_what_the_task_that_waits_for_a_trainjob_does_and_no_more() -> None:
    rules = find(manifests("workspace", "default"), "Role", "kinoflow")["rules"]
    allowed: dict[str, set[str]] = {}
    for rule in rules:
        for resource in rule["resources"]:
            allowed.setdefault(resource, set()).update(rule["verbs"])
    assert allowed["trainjobs"] == {"create", "get", "list", "watch", "delete"}
    assert allowed["pods"] == {"get", "list"} and allowed["pods/log"] == {"get"} and allowed["workflows"] == {"get"}
    assert set(allowed) == {
        "configmaps",
        "secrets",
        "workflowtaskresults",
        "trainjobs",
        "pods",
        "pods/log",
        "workflows",
    }
