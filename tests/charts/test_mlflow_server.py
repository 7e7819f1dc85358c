"""The tracking server with the very arguments the chart gives it: which names and origins it answers to."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.waiting import wait_for_http
from tests.charts.rendering import NAMESPACE, find, manifests, pod_of
from tests.s3_process import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server started as in the chart's pod, with a database and a folder of this machine."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    pod = pod_of(find(manifests("platform", "external"), "Deployment", "mlflow"))
    assert pod is not None
    container = pod["spec"]["containers"][0]
    here = {
        "--host": "127.0.0.1", "--port": str(port), "--workers": "1",
        "--backend-store-uri": f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination": str(folder / "artifacts"),
    }  # fmt: skip
    arguments = [f"{name}={here.get(name, value)}" for name, _, value in (a.partition("=") for a in container["args"])]
    command = [str(Path(sys.executable).with_name("mlflow")), "server", *arguments]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        assert wait_for_http(f"http://127.0.0.1:{port}/health", 120), (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)


def status(address: str, host: str, origin: str = "") -> int:
    """What the server says to an experiment made under that Host, from a browser's page of that origin."""
    headers = {"Host": host, "Content-Type": "application/json", **({"Origin": origin} if origin else {})}
    body = b'{"max_results": 1}'
    call = urllib.request.Request(f"{address}/api/2.0/mlflow/experiments/search", data=body, headers=headers)
    try:
        with urllib.request.urlopen(call, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_pods_and_people_reach_it_under_every_name_it_has_and_no_other(server: str) -> None:
    for host in ("mlflow:5000", f"mlflow.{NAMESPACE}:5000", f"mlflow.{NAMESPACE}.svc:5000", "mlflow.example.org"):
        assert status(server, host) == 200, host
    assert status(server, f"mlflow.{NAMESPACE}.svc.k8s.example.org:5000") == 200
    for host in ("evil.example.org", "mlflow.evil.example.org", "10.0.0.7:5000"):
        assert status(server, host) == 403, host


def test_browsers_post_from_the_published_page_and_from_no_other(server: str) -> None:
    assert status(server, "mlflow.example.org", "https://mlflow.example.org") == 200
    assert status(server, "localhost:5000", "http://localhost:5000") == 200
    assert status(server, "mlflow.example.org", "https://evil.example.org") == 403
