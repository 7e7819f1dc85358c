"""Whether a Kubernetes cluster has what the pods of a preset ask for: names, nodes, devices, quota."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from components.findings import Finding
from pipelines.cluster import (
    ADDRESSES,
    CREDENTIALS,
    GPU_PRODUCT_LABEL,
    TASK_KINDS,
    Cluster,
    Pods,
    TaskKind,
    quantity,
)

OLDEST = (1, 31)
LIMITS_S = (5, 30)
KUEUE_VERSIONS = ("v1beta2", "v1beta1")
CONTROL_PLANE_TAINTS = ("NoSchedule", "NoExecute")


class NotChecked(Exception):  # noqa: N818
    """The check could not be made; the message says why."""


class Failed(Exception):  # noqa: N818
    """The check was made and failed."""

    def __init__(self, seen: str, advice: str) -> None:
        super().__init__(seen)
        self.seen, self.advice = seen, advice


@dataclass(frozen=True)
class Node:
    """What matters of one node that takes pods."""

    name: str
    labels: Mapping[str, str]
    taints: tuple[tuple[str, str, str], ...]  # key, value, effect
    room: Mapping[str, float]


class Kubernetes:
    """One API server, as the account of the kubeconfig or of the pod sees it.

    Args:
        kubeconfig: file; KUBECONFIG, ~/.kube/config or the pod's own account when None.
        context: of the kubeconfig; its current one when None.
        namespace: where pods run; the context's own when None.
    """

    def __init__(self, kubeconfig: Path | None, context: str | None, namespace: str | None) -> None:
        from kubernetes import client, config

        settings = client.Configuration()
        own = None
        try:
            file = str(kubeconfig) if kubeconfig else None
            config.load_kube_config(file, context, settings, persist_config=False)
            contexts, current = config.list_kube_config_contexts(file)
            chosen = next((one for one in contexts if one["name"] == context), current)
            own = chosen["context"].get("namespace")
        except config.ConfigException as error:
            try:
                config.load_incluster_config(client_configuration=settings)
            except config.ConfigException:
                raise Failed(f"no kubeconfig ({error})", "Set KUBECONFIG, or give --kubeconfig.") from error
        settings.retries = 1
        self.namespace = namespace or own or "default"
        self._client = client.ApiClient(settings)
        self.core, self.custom = client.CoreV1Api(self._client), client.CustomObjectsApi(self._client)

    def version(self) -> str:
        """The server's version.

        Raises:
            Failed: nothing answers, the account is refused, or the server is too old.
        """
        from kubernetes import client
        from urllib3.exceptions import HTTPError

        try:
            code = client.VersionApi(self._client).get_code(_request_timeout=LIMITS_S)
        except client.ApiException as error:
            raise Failed(
                f"it answers {error.status}", "Log in again; the kubeconfig's credentials are refused."
            ) from error
        except (HTTPError, OSError) as error:
            raise Failed(
                f"{self._client.configuration.host} does not answer ({type(error).__name__})",
                "Check the kubeconfig's context, and the network or VPN.",
            ) from error
        found = tuple(int(re.sub(r"\D.*", "", part) or 0) for part in (code.major, code.minor))
        if found < OLDEST:
            raise Failed(f"{code.git_version}", f"Kinoflow is tested from {OLDEST[0]}.{OLDEST[1]} on; upgrade.")
        return str(code.git_version)

    def ask(self, what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """One request; None when there is no such thing.

        Raises:
            NotChecked: the account may not ask, or nothing answers.
        """
        from kubernetes import client
        from urllib3.exceptions import HTTPError

        try:
            return call(*arguments, **options, _request_timeout=LIMITS_S)
        except client.ApiException as error:
            if error.status == 404:
                return None
            why = "this account may not" if error.status in (401, 403) else f"the server answers {error.status} to"
            raise NotChecked(f"{why} read {what}") from error
        except (HTTPError, OSError) as error:
            raise NotChecked(f"the server did not answer about {what}") from error

    def nodes(self) -> list[Node]:
        """Nodes that are ready and take pods."""
        found = []
        for item in self.ask("nodes", self.core.list_node).items:
            ready = any(one.type == "Ready" and one.status == "True" for one in item.status.conditions or [])
            if ready and not item.spec.unschedulable:
                taints = tuple((one.key, one.value or "", one.effect) for one in item.spec.taints or [])
                room = {name: _number(text) for name, text in (item.status.allocatable or {}).items()}
                found.append(Node(item.metadata.name, item.metadata.labels or {}, taints, room))
        return found


def _number(text: str) -> float:
    try:
        return quantity(text)
    except ValueError:
        return 0.0


def examine(kubernetes: Kubernetes, cluster: Cluster) -> list[Finding]:
    """Everything that can be found out about a cluster that answers."""
    space = kubernetes.namespace
    found = [
        made(f"secret {name}", partial(_has, kubernetes, "secret", name, keys))
        for name, keys in _secrets(cluster).items()
    ]
    found.append(
        made(f"config map {cluster.addresses}", partial(_has, kubernetes, "config map", cluster.addresses, ADDRESSES))
    )
    try:
        nodes: list[Node] | NotChecked = kubernetes.nodes()
    except NotChecked as reason:
        nodes = reason
    for kind in TASK_KINDS:
        found.append(made(f"nodes for {kind}", partial(_fits, nodes, cluster, kind)))
        if cluster.gpus_of(kind) > 1:
            found.append(made(f"/dev/shm of {kind}", partial(_shared_memory, cluster, kind)))
    found.append(made(f"quota of {space}", partial(_quota, kubernetes, cluster)))
    found.append(made("Kueue's queue", partial(_queue, kubernetes, cluster)))
    return found


def made(name: str, check: Callable[[], str]) -> Finding:
    """Make one check; what it raises becomes its outcome."""
    try:
        return Finding(name, "ok", check())
    except NotChecked as reason:
        return Finding(name, "not checked", str(reason))
    except Failed as failure:
        return Finding(name, "failed", failure.seen, failure.advice)


def _secrets(cluster: Cluster) -> dict[str, tuple[str, ...]]:
    """Secrets that pods name, and the keys they take from each."""
    wanted: dict[str, set[str]] = {cluster.store_secret: set(CREDENTIALS)}
    for kind in TASK_KINDS:
        for secret, keys in cluster.pods(kind).secrets.items():
            wanted.setdefault(secret, set()).update(keys)
    return {secret: tuple(sorted(keys)) for secret, keys in wanted.items()}


def _has(kubernetes: Kubernetes, what: str, name: str, keys: tuple[str, ...]) -> str:
    """Only names of keys are looked at, and never a value."""
    core = kubernetes.core
    read = core.read_namespaced_secret if what == "secret" else core.read_namespaced_config_map
    there = kubernetes.ask(f"the {what}s of {kubernetes.namespace}", read, name, kubernetes.namespace)
    advice = f"Make it in the namespace {kubernetes.namespace}, or install the chart workspace there."
    if there is None:
        raise Failed(f"there is none in {kubernetes.namespace}", advice)
    missing = sorted(set(keys) - set(there.data or {}))
    if missing:
        raise Failed(f"it lacks {', '.join(missing)}", f"Add the key {missing[0]} to it.")
    return f"has {', '.join(keys)}"


def _fits(nodes: list[Node] | NotChecked, cluster: Cluster, kind: TaskKind) -> str:
    """Some node may take a pod of this kind, when it is empty."""
    if isinstance(nodes, NotChecked):
        raise nodes
    pods, gpus = cluster.pods(kind), cluster.gpus_of(kind)
    selector = dict(pods.node_selector) | ({GPU_PRODUCT_LABEL: pods.gpu_product} if gpus and pods.gpu_product else {})
    labelled = [node for node in nodes if all(node.labels.get(label) == value for label, value in selector.items())]
    if not labelled:
        there = sorted({node.labels[GPU_PRODUCT_LABEL] for node in nodes if GPU_PRODUCT_LABEL in node.labels})
        asked = ", ".join(f"{label}={value}" for label, value in selector.items())
        others = f"; GPUs there: {', '.join(there)}" if there else ""
        raise Failed(
            f"no ready node has {asked}" if asked else "no node is ready",
            f"Label the nodes, or change the selector{others}.",
        )
    open_to = [node for node in labelled if not _kept_out(node, pods)]
    if not open_to:
        taint = _kept_out(labelled[0], pods)
        raise Failed(f"{len(labelled)} nodes match, all with taints", f"Add a toleration for {taint}.")
    for name, wanted in _wanted(pods, gpus).items():
        most = max(node.room.get(name, 0.0) for node in open_to)
        if most < wanted:
            raise Failed(
                f"{name}: {wanted:g} wanted, at most {most:g} on one of {len(open_to)} nodes",
                "Install the device plugin (chart gpu-nodes), or ask for less."
                if name == pods.gpu_resource and not most
                else "Ask for less, or add larger nodes.",
            )
    wanted_room = _wanted(pods, gpus)
    fitting = [node for node in open_to if all(node.room.get(n, 0.0) >= w for n, w in wanted_room.items())]
    if not fitting:
        raise Failed("no single node has all of it", "Ask for less, or add larger nodes.")
    together = cluster.train.nodes if kind == "train" else 1
    if len(fitting) < together:
        raise Failed(
            f"{len(fitting)} nodes have all of it, {together} are to train together", "Ask for fewer, or add nodes."
        )
    return f"{len(fitting)} of {len(nodes)} nodes{f', {gpus} x {pods.gpu_resource}' if gpus else ''}"


def _wanted(pods: Pods, gpus: int) -> dict[str, float]:
    sizes = {"cpu": pods.cpu, "memory": pods.memory, "ephemeral-storage": pods.scratch}
    return ({pods.gpu_resource: float(gpus)} if gpus else {}) | {
        name: quantity(text) for name, text in sizes.items() if text
    }


def _kept_out(node: Node, pods: Pods) -> str:
    """The first taint of a node that its pods would not tolerate, as key=value:effect; empty when there is none."""
    for key, value, effect in node.taints:
        tolerated = any(
            one.key in ("", key) and (one.operator == "Exists" or one.value == value) and one.effect in ("", effect)
            for one in pods.tolerations
        )
        if effect in CONTROL_PLANE_TAINTS and not tolerated:
            return f"{key}{f'={value}' if value else ''}:{effect}"
    return ""


def _shared_memory(cluster: Cluster, kind: TaskKind) -> str:
    size = cluster.pods(kind).shared_memory
    if not size:
        raise Failed(
            f"{cluster.gpus_of(kind)} GPUs and the runtime's 64 MiB", f"Set {kind}.shared_memory, for example 16Gi."
        )
    return f"{size}, from the pod's memory"


def _most_gpus(cluster: Cluster) -> tuple[str, int]:
    """The resource and number of the task that takes most GPUs, on all its nodes; the chain runs one after another."""
    nodes = {"train": cluster.train.nodes}
    return max(
        ((cluster.pods(kind).gpu_resource, cluster.gpus_of(kind) * nodes.get(kind, 1)) for kind in TASK_KINDS),
        key=lambda one: one[1],
    )


def _quota(kubernetes: Kubernetes, cluster: Cluster) -> str:
    resource, gpus = _most_gpus(cluster)
    space = kubernetes.namespace
    quotas = kubernetes.ask(f"the quotas of {space}", kubernetes.core.list_namespaced_resource_quota, space).items
    if not quotas:
        return "the namespace has none"
    limited = []
    for one in quotas:
        hard, used = one.status.hard or one.spec.hard or {}, one.status.used or {}
        key = f"requests.{resource}"
        if key not in hard:
            continue
        left = _number(hard[key]) - _number(used.get(key, "0"))
        limited.append(left)
        if left < gpus:
            seen = f"{one.metadata.name}: {left:g} of {hard[key]} {resource} left, {gpus} wanted"
            raise Failed(seen, "Wait for other runs, or have the quota raised.")
    return f"{min(limited):g} {resource} left, {gpus} wanted" if limited else f"none limits {resource}"


def _queue(kubernetes: Kubernetes, cluster: Cluster) -> str:
    if not cluster.queue:
        raise NotChecked("the cluster's settings name no queue")
    resource, gpus = _most_gpus(cluster)
    local, version = _kueue(kubernetes, "localqueues", cluster.queue, kubernetes.namespace)
    name = local["spec"]["clusterQueue"]
    found = kubernetes.ask(
        "cluster queues", kubernetes.custom.get_cluster_custom_object,
        "kueue.x-k8s.io", version, "clusterqueues", name,
    )  # fmt: skip
    if found is None:
        raise Failed(f"its cluster queue {name} does not exist", "Make it, or let the local queue name another.")
    if not gpus:
        return f"{cluster.queue} of {name}"
    quotas = [
        _number(str(one["nominalQuota"]))
        for group in found["spec"].get("resourceGroups", []) for flavor in group["flavors"]
        for one in flavor["resources"] if one["name"] == resource
    ]  # fmt: skip
    if max(quotas, default=0.0) < gpus:
        raise Failed(
            f"{name} has {max(quotas, default=0.0):g} {resource} in its largest flavor, {gpus} wanted",
            "Raise the queue's quota, or ask for fewer GPUs; pods would wait for ever.",
        )
    return f"{cluster.queue} of {name}, {max(quotas):g} {resource}"


def _kueue(kubernetes: Kubernetes, kind: str, name: str, namespace: str) -> tuple[dict[str, Any], str]:
    for version in KUEUE_VERSIONS:
        found = kubernetes.ask(
            "Kueue's queues", kubernetes.custom.get_namespaced_custom_object,
            "kueue.x-k8s.io", version, namespace, kind, name,
        )  # fmt: skip
        if found is not None:
            return found, version
    raise Failed(f"there is no local queue {name} in {namespace}", "Make it, or install Kueue and the chart workspace.")
