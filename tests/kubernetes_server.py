"""The few reading calls of a Kubernetes API server that `kinoflow doctor` makes, on loopback, with a token."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

TOKEN = "kubernetes-test-token"


def node(name: str, *, labels: dict[str, str] | None = None, taint: str = "", ready: bool = True,
         **room: str) -> dict[str, Any]:  # fmt: skip
    """One node; `taint` is key=value:effect, `room` allocatable resources (`gpu` for nvidia.com/gpu)."""
    allocatable = {"cpu": "8", "memory": "64Gi", "ephemeral-storage": "100Gi", **room}
    if "gpu" in allocatable:
        allocatable["nvidia.com/gpu"] = allocatable.pop("gpu")
    spec: dict[str, Any] = {}
    if taint:
        key, _, rest = taint.partition("=")
        value, _, effect = rest.partition(":")
        spec["taints"] = [{"key": key, "value": value, "effect": effect}]
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": spec,
        "status": {
            "allocatable": allocatable,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


@dataclass
class KubernetesServer:
    """What the server answers by path; paths in `forbidden` are 403, all others 404."""

    answers: dict[str, Any] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    port: int = 0

    def start(self) -> None:
        """Listen on a free port."""
        answers, forbidden = self.answers, self.forbidden

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                admitted = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                status = 401 if not admitted else 403 if path in forbidden else 200 if path in answers else 404
                failure = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status}
                content = json.dumps(answers[path] if status == 200 else failure).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Be gone."""
        self._server.shutdown()
        self._server.server_close()

    def write_kubeconfig(self, path: Path, namespace: str, token: str = TOKEN) -> Path:
        """A kubeconfig of one context that names this server."""
        path.write_text(
            yaml.safe_dump({
                "apiVersion": "v1", "kind": "Config", "current-context": "here",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                "users": [{"name": "u", "user": {"token": token}}],
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
            })
        )  # fmt: skip
        return path
