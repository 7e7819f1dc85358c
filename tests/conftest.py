"""Fixtures for every test: a real S3 server, and a made world of shapes with its truth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from components.shapes.generate import generate
from components.shapes.plan import ShapesConfig
from tests.s3_process import ACCESS_KEY, SECRET_KEY, free_port, s3_environment, start_s3_server

WORLD = ShapesConfig(seed=5, num_videos=30, num_images=14)


@dataclass(frozen=True)
class S3Server:
    """A running server; the standard environment variables point at it while a test uses it."""

    endpoint: str

    def bucket(self) -> str:
        """Create a bucket of a fresh name; returns `s3://name`."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        ).create_bucket(Bucket=name)
        return f"s3://{name}"


@pytest.fixture(scope="session")
def made_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos/, truth.json and prompts.txt; not to be written to."""
    folder = tmp_path_factory.mktemp("world")
    generate(folder, WORLD)
    return folder


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an `rclone serve s3` that lives as long as the session."""
    with run_s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def s3_server(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The session's S3 server, with the standard environment set up to reach it."""
    for name, value in s3_environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    return S3Server(s3_endpoint)


@contextmanager
def run_s3_server(root: Path, port: int | None = None) -> Iterator[str]:
    """Run an S3 server with its objects below `root`; it ends by SIGKILL."""
    port = port or free_port()
    process = start_s3_server(root, port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(timeout=10)


@pytest.fixture(scope="session")
def mlflow_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server on SQLite that lives as long as the session; starting one is slow."""
    with run_mlflow_server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


@pytest.fixture
def mlflow_server(mlflow_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The session's MLflow server, with the standard variable pointing at it; tests tell runs apart by name."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_endpoint)
    return mlflow_endpoint


@contextmanager
def run_mlflow_server(root: Path, port: int | None = None) -> Iterator[str]:
    """Run an MLflow server with its database and artifacts below `root`."""
    port = port or free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--artifacts-destination", str(root / "artifacts"),
    ]  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (root / "log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **quiet}, cwd=root, start_new_session=True
        )
        try:
            _wait_for_health(f"http://127.0.0.1:{port}/health", process, root / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
            process.wait(timeout=10)


def _wait_for_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the MLflow server did not start: {log.read_text(errors='replace')}")
