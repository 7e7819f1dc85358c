"""A Kubernetes API server on loopback that keeps TrainJobs, pods with logs and workflows in memory."""

from __future__ import annotations

import datetime
import json
import re
import socket
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

JOBS = re.compile(r"/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/([^/]+)/trainjobs(?:/([^/]+))?")
WORKFLOWS = re.compile(r"/apis/argoproj\.io/v1alpha1/namespaces/([^/]+)/workflows/([^/]+)")
PODS = re.compile(r"/api/v1/namespaces/([^/]+)/pods(?:/([^/]+)(/log)?)?")
STEP_LABELS = ("jobset.sigs.k8s.io/jobset-name", "jobset.sigs.k8s.io/replicatedjob-name")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class TrainJobServer:
    """What the server holds; tests play the controller by changing it."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    workflows: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    forbidden: str = ""
    invalid: str = ""
    failing: bool = False

    def __post_init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.lock = threading.RLock()

    def start(self) -> None:
        """Listen."""
        handler = type("Bound", (_Handler,), {"held": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Be gone; everything held stays."""
        self._server.shutdown()
        self._server.server_close()

    def write_kubeconfig(self, path: Path) -> Path:
        """A kubeconfig that names this server and the namespace team-a."""
        path.write_text(
            yaml.safe_dump({
                "apiVersion": "v1", "kind": "Config", "current-context": "here",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team-a"}}],
            })
        )  # fmt: skip
        return path

    def created(self) -> list[str]:
        """Names of the jobs in the order in which they were made."""
        return [path for verb, path in self.requests if verb == "POST"]

    def add_pod(self, job: str, index: int, *lines: str, phase: str = "Running") -> str:
        """A pod of a job with lines in its log."""
        name = f"{job}-node-0-{index}-{uuid.uuid4().hex[:5]}"
        labels = dict(zip(STEP_LABELS, (job, "node"))) | {"batch.kubernetes.io/job-completion-index": str(index)}
        self.pods[name] = {
            "metadata": {"name": name, "labels": labels, "creationTimestamp": _now()},
            "spec": {"containers": []},
            "status": {"phase": phase},
        }
        self.say(name, *lines)
        return name

    def say(self, pod: str, *lines: str) -> None:
        """Append lines to a pod's log."""
        for line in lines:
            moment = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
            self.logs.setdefault(pod, []).append((moment, line))

    def set_state(self, job: str, kind: str, message: str = "") -> None:
        """Give a job a condition, or let it run."""
        status: dict[str, Any] = {"jobsStatus": [
            {"name": "node", "active": 1, "ready": 1, "failed": 0, "succeeded": 0, "suspended": 0}
        ]}  # fmt: skip
        if kind != "Running":
            condition = {"type": kind, "status": "True", "reason": "Because", "message": message}
            status["conditions"] = [{**condition, "lastTransitionTime": _now()}]
        self.jobs[job]["status"] = status


class _Handler(BaseHTTPRequestHandler):
    held: TrainJobServer

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, verb: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        with self.held.lock:
            self.held.requests.append((verb, parts.path))
            if self.held.failing:
                return self._answer(503, {"message": "etcd is away"})
            if self.held.forbidden and self.held.forbidden in parts.path:
                return self._answer(403, {"message": "forbidden"})
            if match := JOBS.fullmatch(parts.path):
                return self._jobs(verb, match[2], body)
            if match := WORKFLOWS.fullmatch(parts.path):
                return self._found(self.held.workflows.get(match[2]))
            if match := PODS.fullmatch(parts.path):
                return self._pods(match[2], bool(match[3]), query)
        return self._answer(404, {"message": "not found"})

    def _jobs(self, verb: str, name: str | None, body: bytes) -> None:
        jobs = self.held.jobs
        if verb == "POST":
            job = json.loads(body)
            if self.held.invalid:
                return self._answer(422, {"message": self.held.invalid})
            if job["metadata"]["name"] in jobs:
                return self._answer(409, {"message": "already exists"})
            job["metadata"]["uid"] = str(uuid.uuid4())
            jobs[job["metadata"]["name"]] = job
            return self._answer(201, job)
        if verb == "DELETE" and name in jobs:
            assert query_of(self.path).get("propagationPolicy") == "Foreground"
            return self._answer(200, jobs.pop(name))
        if name is None:
            label, _, value = query_of(self.path)["labelSelector"].partition("=")
            found = [job for job in jobs.values() if job["metadata"]["labels"].get(label) == value]
            return self._answer(200, {"kind": "TrainJobList", "items": found})
        return self._found(jobs.get(name))

    def _pods(self, name: str | None, log: bool, query: dict[str, str]) -> None:
        if log and name in self.held.logs:
            assert query["container"] == "node"
            lines = self.held.logs[name][-int(query.get("tailLines", 10**6)) :]
            if "sinceSeconds" in query:
                since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=int(query["sinceSeconds"]))
                lines = [one for one in lines if one[0] >= since.strftime("%Y-%m-%dT%H:%M:%S.%f000Z")]
            stamped = query.get("timestamps", "").lower() == "true"
            text = "".join(f"{moment} {line}\n" if stamped else f"{line}\n" for moment, line in lines)
            return self._answer(200, text)
        if name:
            return self._found(self.held.pods.get(name))
        wanted = dict(one.split("=") for one in query["labelSelector"].split(","))
        found = [pod for pod in self.held.pods.values() if wanted.items() <= pod["metadata"]["labels"].items()]
        return self._answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found})

    def _found(self, thing: dict[str, Any] | None) -> None:
        self._answer(200, thing) if thing is not None else self._answer(404, {"message": "not found"})

    def _answer(self, status: int, answer: Any) -> None:
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def query_of(path: str) -> dict[str, str]:
    """The last value of each key."""
    return {key: values[-1] for key, values in parse_qs(urlsplit(path).query).items()}
