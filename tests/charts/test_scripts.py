"""The scripts that run in the charts' pods: against a real store, a real database, a real HTTP server."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import runpy
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest

from tests.charts.rendering import CHARTS_FOLDER, find, manifests
from tests.conftest import S3Server

BUCKETS = CHARTS_FOLDER / "platform" / "files" / "make_buckets.py"
BACKUP = CHARTS_FOLDER / "platform" / "files" / "backup.py"
RESTORE = CHARTS_FOLDER / "platform" / "files" / "restore.py"
HEALTH = CHARTS_FOLDER / "gpu-nodes" / "files" / "check_gpus.py"


@dataclass(frozen=True)
class Outcome:
    """How a script ended."""

    returncode: int
    stdout: str
    stderr: str


def run_script(script: Path, *arguments: str, **environment: str) -> Outcome:
    """Run a script as `python script arguments` would, in this process: a new one spends seconds on importing boto3."""
    said = io.StringIO()
    code: object = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", [str(script), *arguments])
        boto3.setup_default_session()  # credentials are read once a session
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code
    boto3.setup_default_session()
    return Outcome(1 if isinstance(code, str) else int(str(code or 0)), said.getvalue(), str(code))


def test_missing_buckets_are_made_and_existing_ones_kept(s3_server: S3Server) -> None:
    existing = s3_server.bucket().removeprefix("s3://")
    boto3.client("s3").put_object(Bucket=existing, Key="kept", Body=b"1")
    wanted = f"new-{existing}"
    first = run_script(BUCKETS, existing, wanted)
    assert (first.returncode, first.stdout) == (0, f"{existing}: exists\n{wanted}: created\n")
    assert run_script(BUCKETS, existing, wanted).stdout == f"{existing}: exists\n{wanted}: exists\n"
    assert boto3.client("s3").head_object(Bucket=existing, Key="kept")["ContentLength"] == 1


def test_wrong_keys_and_a_store_that_is_away_end_with_a_sentence(s3_server: S3Server) -> None:
    refused = run_script(BUCKETS, "a-bucket", AWS_SECRET_ACCESS_KEY="wrong-secret")
    assert refused.returncode == 1
    assert "Check the secret's two keys" in refused.stderr
    away = run_script(BUCKETS, "a-bucket", AWS_ENDPOINT_URL_S3="http://127.0.0.1:9", STORE_WAIT_S="0")
    assert away.returncode == 1
    assert "The store did not answer" in away.stderr


def test_a_backup_holds_a_database_that_is_being_written_and_old_ones_go(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.bucket().removeprefix("s3://")
    client = boto3.client("s3")
    client.put_object(Bucket=bucket, Key="backups/notes.txt", Body=b"not a copy")
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE runs (name TEXT)")
        for count in range(1, 4):
            connection.execute("INSERT INTO runs VALUES (?)", (f"run-{count}",))
            connection.commit()
            done = run_script(BACKUP, str(database), f"s3://{bucket}/backups", "2")
            assert done.returncode == 0, done.stderr
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert "backups/notes.txt" in keys
    copies = sorted(key for key in keys if key.endswith("-mlflow.db.gz"))
    assert len(copies) == 2
    newest = tmp_path / "restored.db"
    newest.write_bytes(gzip.decompress(client.get_object(Bucket=bucket, Key=copies[-1])["Body"].read()))
    with closing(sqlite3.connect(newest)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (3,)


def test_a_copy_is_brought_back_and_the_old_database_kept(s3_server: S3Server, tmp_path: Path) -> None:
    prefix = f"{s3_server.bucket()}/backups"
    database = tmp_path / "mlflow.db"
    away = run_script(RESTORE, prefix, str(database))
    assert (away.returncode, "There is no copy below" in away.stderr) == (1, True)
    for name in ("first", "second"):
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS runs (name TEXT)")
            connection.execute("INSERT INTO runs VALUES (?)", (name,))
            connection.commit()
        assert run_script(BACKUP, str(database), prefix, "9").returncode == 0

    def runs(file: Path) -> int:
        with closing(sqlite3.connect(file)) as connection:
            return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])

    bucket = prefix.removeprefix("s3://").partition("/")[0]
    first = min(item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"])
    assert run_script(RESTORE, prefix, str(database), first.removeprefix("backups/")).returncode == 0
    assert (runs(database), runs(tmp_path / "mlflow.before-restore")) == (1, 2)
    assert run_script(RESTORE, prefix, str(database), "").returncode == 0
    assert runs(database) == 2
    unknown = run_script(RESTORE, prefix, str(database), "20200101T000000.000000Z-mlflow.db.gz")
    assert (unknown.returncode, first.removeprefix("backups/") in unknown.stderr) == (1, True)

    broken = gzip.compress(b"SQLite format 3\0" + b"rubbish" * 2000)
    boto3.client("s3").put_object(Bucket=bucket, Key="backups/99990101T000000.000000Z-mlflow.db.gz", Body=broken)
    damaged = run_script(RESTORE, prefix, str(database))
    assert (damaged.returncode, "The copy is damaged" in damaged.stderr) == (1, True)
    assert runs(database) == 2
    database.write_bytes(b"SQLite format 3\0" + b"rubbish" * 2000)
    refused = run_script(BACKUP, str(database), prefix, "1")
    assert (refused.returncode, "Nothing was uploaded" in refused.stderr) == (1, True)


def test_a_dump_is_uploaded_as_it_is_and_a_missing_one_is_an_error(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_server.bucket().removeprefix("s3://")
    dump = tmp_path / "mlflow.dump"
    assert run_script(BACKUP, str(dump), f"s3://{bucket}/deep/prefix", "3").returncode == 1
    dump.write_bytes(b"PGDMP")
    assert run_script(BACKUP, str(dump), f"s3://{bucket}/deep/prefix", "3").returncode == 0
    (item,) = boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]
    assert item["Key"].startswith("deep/prefix/")
    assert item["Size"] == 5
    back = tmp_path / "scratch" / "mlflow.dump"
    back.parent.mkdir()
    assert run_script(RESTORE, f"s3://{bucket}/deep/prefix", str(back)).returncode == 0
    assert back.read_bytes() == b"PGDMP"


class Node(BaseHTTPRequestHandler):
    """An API server that knows one node."""

    node: ClassVar[dict[str, Any]] = {}
    others: ClassVar[list[Any]] = []
    patches: ClassVar[list[Any]] = []

    def do_GET(self) -> None:
        listed = self.path == "/api/v1/nodes?labelSelector=nvidia.com/gpu.present%3Dtrue"
        self._answer({"items": [self.node, *self.others]} if listed else self.node, listed)

    def do_PATCH(self) -> None:
        patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Content-Type"] == "application/strategic-merge-patch+json"
        self.patches.append(patch)
        self.node["spec"].update(patch["spec"])
        self._answer(self.node)

    def _answer(self, content: Any, listed: bool = False) -> None:
        known = listed or self.path == "/api/v1/nodes/gpu-1"
        body = json.dumps(content).encode()
        self.send_response(200 if known and self.headers["Authorization"] == "Bearer token-of-the-pod" else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def api_server() -> Iterator[str]:
    Node.node = {"metadata": {"name": "gpu-1", "labels": {"nvidia.com/gpu.count": "2"}}, "spec": {}}
    Node.patches, Node.others = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Node)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


def check(tmp_path: Path, server: str, nvidia_smi: str, looks: int = 2, **changes: str) -> str:
    """Run the health check with an `nvidia-smi` of these shell lines; returns what it said."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    if nvidia_smi:
        program = tools / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{nvidia_smi}\n")
        program.chmod(0o755)
    (tmp_path / "token").write_text("token-of-the-pod\n")
    pod = find(manifests("gpu-nodes", "default"), "DaemonSet", "kinoflow-gpu-health")["spec"]["template"]["spec"]
    chart = {item["name"]: item["value"] for item in pod["containers"][0]["env"] if "value" in item}
    environment = {
        **chart, "NODE_NAME": "gpu-1", "API_SERVER": server, "ACCOUNT_FOLDER": str(tmp_path), "FAILURES": "2",
        "PERIOD_S": "0", "END_AFTER": str(looks), "HEARTBEAT": str(tmp_path / "heartbeat"),
        "PATH": str(tools), **changes,
    }  # fmt: skip
    done = subprocess.run([sys.executable, str(HEALTH)], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    alive = subprocess.run([sys.executable, str(HEALTH), "alive"], timeout=60, env={**environment, "PERIOD_S": "60"})
    assert alive.returncode == 0
    return done.stdout + done.stderr


GOOD = "echo '0, GPU-a, 0, No, 55'; echo '1, GPU-b, [N/A], [N/A], [N/A]'"


def test_good_gpus_leave_the_node_alone(tmp_path: Path, api_server: str) -> None:
    assert check(tmp_path, api_server, GOOD) == ""
    assert Node.patches == []


@pytest.mark.parametrize(
    ("nvidia_smi", "reason"),
    [
        ("echo '0, GPU-a, 1, No, 55'; echo '1, GPU-b, 0, No, 55'", "GPU 0 (GPU-a) has 1 uncorrected memory errors"),
        (
            "echo '0, GPU-a, 0, Yes, 55'; echo '1, GPU-b, 0, No, 55'",
            "GPU 0 (GPU-a) could not remap a row of its memory",
        ),
        ("echo '0, GPU-a, 0, No, 99'; echo '1, GPU-b, 0, No, 55'", "GPU 0 (GPU-a) is at 99 C"),
        ("echo '0, GPU-a, 0, No, 55'", "1 of 2 GPUs answer"),
        ("echo 'driver mismatch' >&2; exit 18", "nvidia-smi failed with 18: driver mismatch"),
    ],
)
def test_bad_gpus_cordon_the_node_once_with_the_reason(
    tmp_path: Path, api_server: str, nvidia_smi: str, reason: str
) -> None:
    said = check(tmp_path, api_server, nvidia_smi, looks=4)
    (patch,) = Node.patches
    assert patch["spec"] == {"unschedulable": True}
    assert json.loads(patch["metadata"]["annotations"]["kinoflow.io/gpu-health"])["faults"] == [reason]
    assert f"cordoned gpu-1: {reason}" in said
    assert "gpu-1 is already cordoned" in said


def test_one_bad_look_or_a_report_only_check_cordons_nothing(tmp_path: Path, api_server: str) -> None:
    bad = "echo '0, GPU-a, 3, No, 55'; echo '1, GPU-b, 0, No, 55'"
    check(tmp_path, api_server, bad, looks=1)
    said = check(tmp_path, api_server, bad, looks=3, CORDON="false")
    assert "would be cordoned, but CORDON is false" in said
    assert Node.patches == []


def test_what_fails_everywhere_cordons_no_more_nodes_than_allowed(tmp_path: Path, api_server: str) -> None:
    by_check = {"annotations": {"kinoflow.io/gpu-health": "{}"}}
    by_hand, uncordoned = {"unschedulable": True}, {}
    Node.others = [
        {"metadata": {"name": "gpu-2", **by_check}, "spec": {"unschedulable": True}},
        {"metadata": {"name": "gpu-3"}, "spec": by_hand},
        {"metadata": {"name": "gpu-4", **by_check}, "spec": uncordoned},
    ]
    said = check(tmp_path, api_server, "exit 9", looks=2, MAX_CORDONED="1")
    assert "gpu-1 stays in use, because 1 nodes are cordoned already: gpu-2" in said
    assert Node.patches == []
    check(tmp_path, api_server, "exit 9", looks=2)
    assert len(Node.patches) == 1


def test_a_node_without_nvidias_runtime_is_reported_and_left_alone(tmp_path: Path, api_server: str) -> None:
    said = check(tmp_path, api_server, "", looks=4)
    assert "Nothing can be said about the GPUs" in said
    assert Node.patches == []


def test_slices_are_not_counted_as_gpus(tmp_path: Path, api_server: str) -> None:
    Node.node["metadata"]["labels"]["nvidia.com/gpu.count"] = "14"
    assert check(tmp_path, api_server, GOOD, COUNT_GPUS="false") == ""
    assert Node.patches == []


def test_an_api_server_that_is_away_stops_nothing(tmp_path: Path) -> None:
    assert "could not be asked" in check(tmp_path, "http://127.0.0.1:9", GOOD)
