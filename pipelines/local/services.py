"""The object store and the tracking server of a run on one machine.

What the environment names (`AWS_ENDPOINT_URL_S3`, `MLFLOW_TRACKING_URI`) is used as it is. What it does not name is
started from wheels: `rclone serve s3` and `mlflow server` on loopback, data and random credentials below `.kinoflow/`.
A second run finds the first one's servers and shares them; the last to leave turns off the light.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from components import store
from components.errors import KinoflowError
from pipelines.local.supervisor import HOME_VARIABLE, NAME_VARIABLE, lease_path, log_path, state_path
from pipelines.waiting import http_status, wait_for_http

HOST = "127.0.0.1"
S3, MLFLOW = "s3", "mlflow"
S3_TIMEOUT_S, MLFLOW_TIMEOUT_S, STOP_TIMEOUT_S = 20.0, 120.0, 20.0
CLIENT_SETTINGS = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


@dataclass(frozen=True)
class Ports:
    """Ports a person asked for; a free one is taken where there is none."""

    s3: int | None = None
    mlflow: int | None = None


NO_PORTS = Ports()


@dataclass(frozen=True)
class Services:
    """What a client needs in its environment, and which servers of ours stand behind it."""

    environment: dict[str, str]
    embedded: dict[str, str] = field(default_factory=dict)

    @property
    def tracking_uri(self) -> str:
        """Where runs are tracked."""
        return self.environment["MLFLOW_TRACKING_URI"]

    @property
    def endpoint(self) -> str:
        """Where objects are stored."""
        return self.environment["AWS_ENDPOINT_URL_S3"]


def home_folder() -> Path:
    """`.kinoflow` in the nearest folder upwards that has one or is a project; else in the current folder."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".kinoflow").is_dir() or (folder / ".git").exists():
            return folder / ".kinoflow"
    return here / ".kinoflow"


@contextmanager
def running_services(
    home: Path, ports: Ports = NO_PORTS, *, wait_for_tracking: bool = False, only_store: bool = False
) -> Iterator[Services]:
    """Services for the length of the body, its clients' environment set.

    The tracking server may still be starting (some twenty seconds) unless `wait_for_tracking`; with `only_store`
    there is none.

    Raises:
        KinoflowError: a port is taken, a server does not start, or a named one does not answer.
    """
    wanted = _unnamed(ports, only_store)
    if S3 not in wanted:
        _check_store(os.environ["AWS_ENDPOINT_URL_S3"])
    if MLFLOW not in wanted and not only_store:
        _check_tracking(os.environ["MLFLOW_TRACKING_URI"])
    with ExitStack() as stack:
        for name in wanted:
            stack.enter_context(_lease(home, name))
        embedded = {name: _ensure_started(home, name, port) for name, port in wanted.items()}
        environment = _environment(home, embedded)
        stack.enter_context(_exported(environment))
        if S3 in embedded:
            _wait_for_s3(home, embedded[S3])
        if (
            MLFLOW in embedded
            and wait_for_tracking
            and not wait_for_http(f"{embedded[MLFLOW]}/health", MLFLOW_TIMEOUT_S)
        ):
            raise _did_not_start(home, MLFLOW)
        yield Services(environment, embedded)


def _unnamed(ports: Ports, only_store: bool) -> dict[str, int | None]:
    """The servers that the environment does not name, each with the port a person asked for."""
    wanted: dict[str, int | None] = {}
    for name, variable, port in ((S3, "AWS_ENDPOINT_URL_S3", ports.s3), (MLFLOW, "MLFLOW_TRACKING_URI", ports.mlflow)):
        address = os.environ.get(variable)
        if address and port is not None:
            raise KinoflowError(f"{variable} names {address} already; unset it, or leave out --{name}-port.")
        if not address and not (only_store and name == MLFLOW):
            wanted[name] = port
    return wanted


@contextmanager
def _lease(home: Path, name: str) -> Iterator[None]:
    """Keep the server alive for the length of the body; afterwards it ends unless somebody else keeps it."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / "logs").mkdir(exist_ok=True)
        (home / ".gitignore").write_text("*\n", encoding="utf-8")
        lease = lease_path(home, name).open("a", encoding="utf-8")
    except OSError as error:
        raise KinoflowError(f"Could not write to {home}: {error.strerror}; run in a folder of your own.") from error
    with lease:
        fcntl.flock(lease, fcntl.LOCK_SH)  # waits while a supervisor is still stopping the server
        yield
    _wait_until_stopped(home, name)


def _ensure_started(home: Path, name: str, port: int | None) -> str:
    """Address of our server of that name; one that is already running is used again."""
    with (home / f"{name}.lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = _read_state(home, name)
        if state is None:
            _end_leftovers(home, name)
            state = {"port": _free_port(port, name)}
            _spawn_supervisor(home, name, _server(home, name, state["port"]))
        elif port not in (None, state["port"]):
            raise KinoflowError(
                f"The {name} server of {home} already runs on port {state['port']}; leave out --{name}-port."
            )
    return f"http://{HOST}:{state['port']}"


def _read_state(home: Path, name: str) -> dict[str, int] | None:
    """Where a server of ours runs; None when its supervisor is gone."""
    try:
        state: dict[str, int] = json.loads(state_path(home, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if _lives(state["supervisor_pid"]) else None


def _lives(pid: int) -> bool:
    """Whether the process runs; one that is dead but still listed does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _end_leftovers(home: Path, name: str) -> None:
    """Kill what is left of a server whose supervisor was killed; its processes carry its name and folder."""
    state_path(home, name).unlink(missing_ok=True)
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if (environment.get(HOME_VARIABLE), environment.get(NAME_VARIABLE)) == (str(home), name):
                process.kill()
        except psutil.Error:
            continue


def _free_port(wanted: int | None, name: str) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted or 0))
        except OSError as error:
            raise KinoflowError(
                f"Port {wanted} for the {name} server cannot be used ({error.strerror}); "
                f"give another --{name}-port, or none to take a free one."
            ) from error
        return int(probe.getsockname()[1])


def _server(home: Path, name: str, port: int) -> dict[str, Any]:
    """Command, environment and port of one server."""
    if name == S3:
        keys = credentials(home)
        data = home / "s3"
        data.mkdir(exist_ok=True)
        command = [
            _rclone(), "serve", "s3", "--config", "/dev/null", "--addr", f"{HOST}:{port}",
            "--cache-dir", str(home / "s3-cache"), "--dir-cache-time", "1s",
            f":hasher,remote={data},hashes=md5,max_age=off:",
        ]  # fmt: skip
        # not on the command line, where every user of the machine could read it
        environment = {"RCLONE_AUTH_KEY": f'"{keys["AWS_ACCESS_KEY_ID"]},{keys["AWS_SECRET_ACCESS_KEY"]}"'}
        return {"command": command, "env": environment, "port": port}
    (home / "mlflow").mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", HOST, "--port", str(port),
        "--backend-store-uri", f"sqlite:///{home / 'mlflow' / 'mlflow.db'}",
        "--artifacts-destination", str(home / "mlflow" / "artifacts"),
    ]  # fmt: skip
    return {"command": command, "env": {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, "port": port}


def _rclone() -> str:
    found = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise KinoflowError("rclone is not installed; run `make setup`, or set AWS_ENDPOINT_URL_S3 to a store.")
    return found


def _spawn_supervisor(home: Path, name: str, server: dict[str, Any]) -> None:
    with (home / "logs" / f"{name}-supervisor.log").open("wb") as log:
        result = subprocess.run(
            [sys.executable, "-m", "pipelines.local.supervisor", str(home), name],
            input=json.dumps(server).encode(), stdout=log, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    if result.returncode:
        raise _did_not_start(home, f"{name}-supervisor")


def _wait_for_s3(home: Path, address: str) -> None:
    deadline_s = time.monotonic() + S3_TIMEOUT_S
    while http_status(address) is None:
        if _read_state(home, S3) is None or time.monotonic() > deadline_s:
            raise _did_not_start(home, S3)
        time.sleep(0.05)


def _did_not_start(home: Path, name: str) -> KinoflowError:
    log = log_path(home, name)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
    return KinoflowError(f"The embedded {name} server did not start: {last[:300]} (see {log}).")


def credentials(home: Path) -> dict[str, str]:
    """Access key and secret of the embedded object store, made once, readable by their owner only."""
    path = home / "credentials.json"
    try:
        kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    except (OSError, ValueError):
        made = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(json.dumps(made))
        return made


def _environment(home: Path, embedded: dict[str, str]) -> dict[str, str]:
    environment = {name: os.environ.get(name, value) for name, value in CLIENT_SETTINGS.items()}
    for name in ("AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI"):
        environment[name] = os.environ.get(name, "")
    if embedded:  # a proxy does not lead back to this machine
        for name in ("NO_PROXY", "no_proxy"):
            environment[name] = ",".join(filter(None, [os.environ.get(name), HOST]))
    if S3 in embedded:
        environment |= {"AWS_ENDPOINT_URL_S3": embedded[S3], **credentials(home)}
    if MLFLOW in embedded:
        environment["MLFLOW_TRACKING_URI"] = embedded[MLFLOW]
    return environment


def write_environment(home: Path, services: Services) -> Path:
    """A file that a shell can source to reach the services; readable by its owner only."""
    path = home / "env"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in services.environment.items())
    return path


@contextmanager
def _exported(environment: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_store(address: str) -> None:
    """Wait a while for a store that somebody else runs: it may be starting too."""
    deadline_s = time.monotonic() + min(S3_TIMEOUT_S, store.StoreSettings().patience_s)
    while (status := http_status(address)) is None and time.monotonic() < deadline_s:
        time.sleep(0.5)
    if status is None:
        raise KinoflowError(
            f"The object store at {address} (AWS_ENDPOINT_URL_S3) does not answer; "
            "start it, correct the address, or unset it to use the embedded one."
        )


def _check_tracking(address: str) -> None:
    if address.startswith(("http://", "https://")) and http_status(f"{address.rstrip('/')}/health") != 200:
        raise KinoflowError(
            f"The MLflow server at {address} (MLFLOW_TRACKING_URI) does not answer; "
            "start it, correct the address, or unset it to use the embedded one."
        )


def _wait_until_stopped(home: Path, name: str) -> None:
    """Give the supervisor time to stop its server, unless somebody else still uses it."""
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    with lease_path(home, name).open("a", encoding="utf-8") as lease:
        while time.monotonic() < deadline_s:
            try:
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if _read_state(home, name) is not None:
                    return
            else:
                fcntl.flock(lease, fcntl.LOCK_UN)
                if _read_state(home, name) is None:
                    return
            time.sleep(0.1)
