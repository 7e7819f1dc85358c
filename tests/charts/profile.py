"""Kubernetes' restricted pod security profile, and what we ask of every container beyond it.

Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def breaches(pod: dict[str, Any], container: dict[str, Any]) -> set[str]:
    """What keeps this container of the pod out of the restricted profile."""
    mine, shared = container.get("securityContext", {}), pod["spec"].get("securityContext", {})
    both = {**shared, **mine}
    return {
        *_pod_breaches(pod["spec"]),
        *(f"volume {volume}" for volume in _volumes_of(pod["spec"], container)),
        *(["privileged"] if mine.get("privileged") else []),
        *(["escalation"] if mine.get("allowPrivilegeEscalation") is not False else []),
        *(["root"] if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0 else []),
        *(["seccomp"] if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost") else []),
        *(["capabilities"] if "ALL" not in mine.get("capabilities", {}).get("drop", []) else []),
        *(f"adds {name}" for name in mine.get("capabilities", {}).get("add", []) if name != "NET_BIND_SERVICE"),
        *(["procMount"] if mine.get("procMount", "Default") != "Default" else []),
        *(["seLinux"] if "seLinuxOptions" in both else []),
        *(["windows"] if both.get("windowsOptions", {}).get("hostProcess") else []),
        *(["host port"] if any(port.get("hostPort") for port in container.get("ports", [])) else []),
    }


def _pod_breaches(spec: dict[str, Any]) -> Iterator[str]:
    yield from (name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name))
    if spec.get("securityContext", {}).get("sysctls"):
        yield "sysctls"


def _volumes_of(spec: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    """Kinds of the volumes a container mounts that the profile does not know; a host path is named."""
    mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if volume["name"] in mounted and not kinds <= VOLUMES:
            yield volume["hostPath"]["path"] if "hostPath" in volume else ",".join(kinds)


def shortcomings(container: dict[str, Any]) -> set[str]:
    """What the container lacks of our own rules: a closed file system, resources, a pinned image."""
    resources = container.get("resources", {})
    image = container["image"]
    return {
        *(["writable root"] if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True else []),
        *(["no requests"] if not {"cpu", "memory"} <= set(resources.get("requests", {})) else []),
        *(["no memory limit"] if "memory" not in resources.get("limits", {}) else []),
        *(["image"] if image.endswith(":latest") or ":" not in image.rpartition("/")[2] else []),
    }
