"""Every container of every chart against the restricted profile; the exceptions are named one by one."""

import copy
from typing import Any

import pytest

from tests.charts.profile import breaches, shortcomings
from tests.charts.rendering import CASES, containers_of, find, manifests, pod_of

SOCKETS = "volume /var/lib/kubelet/device-plugins"
FEATURES = "volume /etc/kubernetes/node-feature-discovery/features.d"
POD_RESOURCES = "volume /var/lib/kubelet/pod-resources"
ADMINISTRATOR = {"escalation", "adds SYS_ADMIN"}

EXCEPTIONS = {
    ("gpu-nodes", "default", "device-plugin"): {"root", SOCKETS},
    ("gpu-nodes", "default", "discovery"): {"root", FEATURES},
    ("gpu-nodes", "default", "exporter"): {"root", POD_RESOURCES},
    ("gpu-nodes", "shared", "device-plugin"): {"root", SOCKETS},
    ("gpu-nodes", "shared", "exporter"): {"root", POD_RESOURCES},
    ("gpu-nodes", "full", "device-plugin"): {"root", SOCKETS, *ADMINISTRATOR},  # MIG
    ("gpu-nodes", "full", "discovery"): {"root", FEATURES, *ADMINISTRATOR},  # MIG
    ("gpu-nodes", "full", "exporter"): {"root", POD_RESOURCES, *ADMINISTRATOR},  # profiling
}
WITHOUT_PROBE = {"device-plugin", "discovery"}
WITH_TOKEN = {"kinoflow-gpu-health"}


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_every_container_meets_the_restricted_profile_but_the_named_ones(chart: str, case: str) -> None:
    found = {
        (chart, case, container["name"]): breaches(pod, container)
        for manifest in manifests(chart, case)
        if (pod := pod_of(manifest))
        for container in containers_of(pod)
    }
    expected = {key: breach for key, breach in EXCEPTIONS.items() if key[:2] == (chart, case)}
    assert {key: breach for key, breach in found.items() if breach} == expected


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_every_container_has_a_closed_root_resources_and_a_pinned_image(chart: str, case: str) -> None:
    for manifest in manifests(chart, case):
        for container in containers_of(pod) if (pod := pod_of(manifest)) else ():
            assert shortcomings(container) == set(), (manifest["metadata"]["name"], container["name"])


WITHOUT_TEMPORARY_FILES = {"device-plugin", "dump", "load"}
"""NVIDIA's plugin and PostgreSQL's tools write what they are told to and nothing else."""


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_on_the_closed_root_home_and_temporary_files_have_a_volume(chart: str, case: str) -> None:
    for manifest in manifests(chart, case):
        for container in containers_of(pod) if (pod := pod_of(manifest)) else ():
            told = {each["name"]: each.get("value") for each in container.get("env", [])}
            open_ = {each["mountPath"] for each in container.get("volumeMounts", []) if not each.get("readOnly")}
            needed = {told.get("TMPDIR", "/tmp"), told.get("HOME", told.get("TMPDIR", "/tmp"))}
            assert needed <= open_ or container["name"] in WITHOUT_TEMPORARY_FILES, container["name"]


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_what_keeps_running_is_probed_and_only_the_health_check_holds_a_token(chart: str, case: str) -> None:
    for manifest in manifests(chart, case):
        pod = pod_of(manifest)
        if pod is None:
            continue
        assert pod["spec"]["automountServiceAccountToken"] is False, manifest["metadata"]["name"]
        tokens = [volume for volume in pod["spec"].get("volumes", []) if "serviceAccountToken" in str(volume)]
        assert not tokens or manifest["metadata"]["name"] in WITH_TOKEN | {"kinoflow-registration"}
        if manifest["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
            unprobed = {each["name"] for each in pod["spec"]["containers"] if "livenessProbe" not in each}
            assert unprobed <= WITHOUT_PROBE


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_every_deployed_server_has_a_disruption_budget_that_selects_it(chart: str, case: str) -> None:
    objects = manifests(chart, case)
    budgets = [each["spec"]["selector"]["matchLabels"] for each in objects if each["kind"] == "PodDisruptionBudget"]
    servers = [each for each in objects if each["kind"] in ("Deployment", "StatefulSet")]
    assert len(budgets) == len(servers)
    for server in servers:
        labels = server["spec"]["template"]["metadata"]["labels"]
        assert sum(budget.items() <= labels.items() for budget in budgets) == 1


BROKEN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("privileged", {}, {"privileged": True}),
    ("escalation", {}, {"allowPrivilegeEscalation": True}),
    ("root", {}, {"runAsNonRoot": False}),
    ("root", {}, {"runAsUser": 0}),
    ("seccomp", {}, {"seccompProfile": {"type": "Unconfined"}}),
    ("capabilities", {}, {"capabilities": {}}),
    ("adds SYS_PTRACE", {}, {"capabilities": {"drop": ["ALL"], "add": ["SYS_PTRACE"]}}),
    ("procMount", {}, {"procMount": "Unmasked"}),
    ("hostNetwork", {"hostNetwork": True}, {}),
    ("hostPID", {"hostPID": True}, {}),
    ("sysctls", {"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "0"}]}}, {}),
]


@pytest.mark.parametrize(("breach", "spec", "context"), BROKEN)
def test_the_profile_notices_what_breaks_it(breach: str, spec: dict[str, Any], context: dict[str, Any]) -> None:
    pod = copy.deepcopy(pod_of(find(manifests("platform", "default"), "Deployment", "mlflow")))
    assert pod is not None
    container = pod["spec"]["containers"][0]
    assert breaches(pod, container) == set()
    pod["spec"].update(spec)
    container["securityContext"].update(context)
    assert breach in breaches(pod, container)


def test_the_profile_notices_a_host_path_and_a_host_port() -> None:
    pod = copy.deepcopy(pod_of(find(manifests("platform", "default"), "Deployment", "mlflow")))
    assert pod is not None
    container = pod["spec"]["containers"][0]
    pod["spec"]["volumes"][0] = {"name": "tmp", "hostPath": {"path": "/"}}
    container["ports"][0]["hostPort"] = 80
    assert breaches(pod, container) == {"volume /", "host port"}
