"""The process that owns one embedded server: starts it, and ends it when nobody uses it any more.

Whoever uses the server holds a shared lock on its lease file. The kernel drops that lock however its holder ends, so
once this process gets the exclusive lock, the last user has left, be it by Ctrl-C or by SIGKILL.
`python -m pipelines.local.supervisor HOME NAME` reads `{"command", "env", "port"}` from its standard input (secrets
have no place on a command line), returns as soon as the server is started, and stays behind as a daemon.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

POLL_S = 0.2
GRACE_S = 8.0
HOME_VARIABLE, NAME_VARIABLE = "KINOFLOW_HOME", "KINOFLOW_SERVER"
PR_SET_PDEATHSIG = 1


def lease_path(home: Path, name: str) -> Path:
    """The file whose shared lock keeps the server alive."""
    return home / f"{name}.lease"


def state_path(home: Path, name: str) -> Path:
    """The file that says where the server runs; it exists as long as the server is meant to."""
    return home / f"{name}.json"


def log_path(home: Path, name: str) -> Path:
    """What the server last wrote."""
    return home / "logs" / f"{name}.log"


def main(home: Path, name: str, server: dict[str, Any]) -> int:
    """Leave a daemon behind that runs the server; exit code 0 once it is started."""
    ended, started = os.pipe()
    if os.fork() == 0:
        os.close(ended)
        os.setsid()
        supervise(home, name, server, started)
        return 0
    os.close(started)
    return 0 if os.read(ended, 1) else 1


def supervise(home: Path, name: str, server: dict[str, Any], started: int) -> None:
    """Start the server, write its state, tell `started`, and stay until the lease is free or the server dies."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lease = lease_path(home, name).open("a")
    process = _start(home, name, server)
    try:
        state = {"supervisor_pid": os.getpid(), "pid": process.pid, "port": server["port"]}
        temporary = home / f"{name}.{os.getpid()}.json"
        temporary.write_text(json.dumps(state), encoding="utf-8")
        temporary.replace(state_path(home, name))
        os.write(started, b"1")
        os.close(started)
        while process.poll() is None and not _lock_is_free(lease.fileno()):
            time.sleep(POLL_S)
    finally:
        state_path(home, name).unlink(missing_ok=True)
        _stop(process)


def _leave(signum: int, frame: object) -> NoReturn:
    sys.exit(0)


def _start(home: Path, name: str, server: dict[str, Any]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **server["env"], HOME_VARIABLE: str(home), NAME_VARIABLE: name}
    with log_path(home, name).open("wb") as log:
        return subprocess.Popen(
            server["command"],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def _die_with_parent() -> None:
    """Ask Linux to end this process when its parent is gone, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _lock_is_free(lease: int) -> bool:
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server's process group: politely, then by force."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        deadline_s = time.monotonic() + GRACE_S
        while time.monotonic() < deadline_s:
            process.poll()
            if not _group_lives(process.pid):
                return
            time.sleep(0.05)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], json.load(sys.stdin)))
