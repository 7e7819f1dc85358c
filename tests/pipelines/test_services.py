"""Embedded services: real servers, real processes, and none left over, however a run ends."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from components import store
from components.errors import KinoflowError
from pipelines.local.services import MLFLOW, S3, Ports, home_folder, running_services, write_environment
from pipelines.local.supervisor import HOME_VARIABLE
from pipelines.waiting import http_status, wait_for_http
from tests.conftest import S3Server

HOLDER = """
import sys, time, pathlib
from pipelines.local.services import running_services
with running_services(pathlib.Path(sys.argv[1]), only_store=True) as services:
    print(services.endpoint, flush=True)
    time.sleep(120)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for services in an environment that names none; nothing may be running there afterwards."""
    for name in ("AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / ".kinoflow"
    yield folder
    assert _wait_until(lambda: not processes_of(folder)), processes_of(folder)


def processes_of(home: Path) -> list[str]:
    """Command lines of all living processes that serve this folder: supervisors and servers."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(HOME_VARIABLE) == str(home) or str(home) in process.cmdline()
            if ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(" ".join(process.cmdline())[:200])
        except psutil.Error:
            continue
    return found


def _wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.1)
    return False


def hold(home: Path) -> tuple[subprocess.Popen[str], str]:
    """Another process that uses the store; returns it and the address it uses."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    command = [sys.executable, "-c", HOLDER, str(home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str], kind: signal.Signals = signal.SIGKILL) -> None:
    process.send_signal(kind)
    process.wait(20)
    assert process.stdout is not None
    process.stdout.close()


def test_the_store_comes_up_works_and_goes(home: Path) -> None:
    with running_services(home, only_store=True) as services:
        assert "MLFLOW_TRACKING_URI" in services.environment
        assert os.environ["AWS_ENDPOINT_URL_S3"] == services.endpoint == services.embedded[S3]
        store.ensure_bucket("s3://kinoflow")
        store.write_bytes("s3://kinoflow/a/b.bin", b"kept")
        assert (home / "s3" / "kinoflow" / "a" / "b.bin").read_bytes() == b"kept"
        secret = os.environ["AWS_SECRET_ACCESS_KEY"]
        assert stat.S_IMODE((home / "credentials.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(write_environment(home, services).stat().st_mode) == 0o600
        assert not any(secret in line for line in processes_of(home))
        assert (home / ".gitignore").read_text(encoding="utf-8") == "*\n"
    assert "AWS_ENDPOINT_URL_S3" not in os.environ
    assert http_status(services.endpoint) is None
    with running_services(home, only_store=True):  # another port, the same data and credentials
        assert store.read_bytes("s3://kinoflow/a/b.bin") == b"kept"


def test_wrong_credentials_are_a_sentence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_services(home, only_store=True):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(KinoflowError, match="refused the credentials"):
            store.ensure_bucket("s3://kinoflow")


def test_two_users_share_one_server_and_the_last_one_ends_it(home: Path) -> None:
    with running_services(home, only_store=True) as mine:
        other, endpoint = hold(home)
        assert endpoint == mine.endpoint
    assert http_status(endpoint) is not None
    end(other, signal.SIGINT)
    assert _wait_until(lambda: http_status(endpoint) is None)


def test_nothing_survives_a_killed_user(home: Path) -> None:
    other, endpoint = hold(home)
    assert http_status(endpoint) is not None
    end(other)
    assert _wait_until(lambda: not processes_of(home))


def test_a_killed_supervisor_is_replaced(home: Path) -> None:
    other, _ = hold(home)
    supervisor = next(p for p in psutil.process_iter() if f"{home} s3" in " ".join(_command(p)))
    supervisor.kill()
    assert _wait_until(lambda: not supervisor.is_running() or supervisor.status() == psutil.STATUS_ZOMBIE)
    with running_services(home, only_store=True):
        store.ensure_bucket("s3://kinoflow")
    end(other)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_port_that_is_taken_is_a_sentence(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(KinoflowError, match=rf"Port {port} for the s3 server cannot be used"),
            running_services(home, Ports(s3=port), only_store=True),
        ):
            pass
    other, _ = hold(home)
    with pytest.raises(KinoflowError, match="already runs on port"), running_services(home, Ports(s3=port)):
        pass
    end(other)


def test_a_server_that_cannot_start_is_a_sentence(home: Path) -> None:
    home.mkdir()
    (home / "s3-cache").write_text("in the way", encoding="utf-8")
    with (
        pytest.raises(KinoflowError, match=r"embedded s3 server did not start: .*s3\.log"),
        running_services(home, only_store=True),
    ):
        pass


def test_named_services_are_used_as_they_are(home: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home.parent}/runs.db")
    with running_services(home) as services:
        assert services.embedded == {}
        assert services.endpoint == s3_server.endpoint
    assert not home.exists()
    with pytest.raises(KinoflowError, match="leave out --mlflow-port"), running_services(home, Ports(mlflow=5000)):
        pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with (
        pytest.raises(KinoflowError, match=r"MLflow server at http://127.0.0.1:9 .* does not answer"),
        running_services(home),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with (
        pytest.raises(KinoflowError, match="Could not write to"),
        running_services(tmp_path / "file" / ".kinoflow", only_store=True),
    ):
        pass


def test_home_is_the_project_around_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "project" / "notes"
    inner.mkdir(parents=True)
    (tmp_path / "project" / ".git").mkdir()
    monkeypatch.chdir(inner)
    assert home_folder() == tmp_path / "project" / ".kinoflow"


@pytest.mark.slow
def test_mlflow_comes_up_beside_the_store(home: Path) -> None:
    with running_services(home) as services:
        assert http_status(services.endpoint) is not None
        assert wait_for_http(f"{services.embedded[MLFLOW]}/health", 120)
        assert http_status(f"{services.tracking_uri}/version") == 200
