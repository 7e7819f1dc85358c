"""`kinoflow doctor`: what can be found wrong before anything is queued."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.errors import KinoflowError
from components.findings import Finding
from pipelines.cluster import Cluster
from pipelines.kubeflow import Kubeflow, KubeflowSettings, public
from pipelines.kubernetes_checks import Failed, Kubernetes, NotChecked, examine, made
from pipelines.waiting import get_json, http_status

COLOURS = {"ok": "green", "note": "yellow", "failed": "red", "not checked": "dim"}
HTTP_S = 5.0


def check_cluster(cluster: Cluster, kubeconfig: Path | None, context: str | None, namespace: str) -> list[Finding]:
    """Kubernetes and what the preset needs of it."""
    connected: list[Kubernetes] = []

    def reach() -> str:
        kubernetes = Kubernetes(kubeconfig, context, namespace or None)
        version = kubernetes.version()
        connected.append(kubernetes)
        return f"{version}, namespace {kubernetes.namespace}"

    found = [made("Kubernetes", reach)]
    if found[0].state == "ok":
        return [*found, *examine(connected[0], cluster)]
    why = "Kubernetes is not to be asked"
    names = ("secrets and config map", "nodes", "quota", "Kueue's queue")
    return [*found, *(Finding(name, "not checked", why) for name in names)]


def check_kubeflow(settings: KubeflowSettings) -> Finding:
    """Kubeflow Pipelines, its version, and whether the account is let in."""

    def reach() -> str:
        try:
            kubeflow = Kubeflow(settings, patience_s=2.0)
            kubeflow.connect()
        except KinoflowError as error:
            raise Failed(str(error), "See the sentence.") from error
        told = get_json(f"{kubeflow.host}/apis/v1beta1/healthz", HTTP_S)
        version = told.get("tag_name") if isinstance(told, dict) else None
        space = f", namespace {kubeflow.namespace}" if kubeflow.namespace else ""
        return f"{version or '2, its exact version is not told'} at {kubeflow.host}{space}"

    return made("Kubeflow Pipelines", reach)


def check_tracking(address: str) -> Finding:
    """MLflow under the address that pods use, as far as this machine sees it."""

    def reach() -> str:
        if not address:
            raise NotChecked("MLFLOW_TRACKING_URI is not set here; pods take it from their config map")
        if not re.match(r"https?://[^/]+?(:\d+)?(/|$)", address):
            raise Failed(
                f"{public(address)} is no address of a server", "Name the server that pods use: http://host:port."
            )
        uri, host = public(address).rstrip("/"), urlsplit(address).hostname or ""
        if http_status(f"{uri}/health", HTTP_S) is None:
            if "KUBERNETES_SERVICE_HOST" not in os.environ and ("." not in host or ".svc" in host):
                raise NotChecked(f"only pods resolve {host}; run this command inside the cluster")
            raise Failed(f"{uri} does not answer", "Check the address, and that MLflow runs.")
        status = http_status(f"{uri}/version", HTTP_S)
        if status == 401:
            raise NotChecked(f"{uri} wants a login, which only pods have")
        if status == 403:
            raise Failed(f"{uri} refuses the name {host}", f"Add {host} to MLFLOW_SERVER_ALLOWED_HOSTS of the server.")
        if status != 200:
            raise Failed(f"{uri} answers {status}", "Check that this is MLflow, and what is needed to log in.")
        return f"answers at {uri}"

    return made("MLflow", reach)


def print_findings(findings: list[Finding], console: Console) -> int:
    """One table, one line of advice per failure; returns how many failed."""
    table = Table("check", "state", "seen", box=None)
    for finding in findings:
        colour = COLOURS[finding.state]
        table.add_row(escape(finding.check), f"[{colour}]{finding.state}[/{colour}]", escape(finding.seen))
    console.print(table)
    failed = [finding for finding in findings if finding.state == "failed"]
    for finding in failed:
        console.print(f"{finding.check}: {finding.advice}", markup=False, highlight=False, soft_wrap=True)
    return len(failed)


def print_settings(settings: dict[str, Any], say: Callable[[str], None]) -> None:
    """The environment to use with a store, as a shell and a config map take it."""
    say("Settings for this store (credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from a secret):")
    for name, value in settings.items():
        say(f"{name}={public(value)}")
