"""Real training processes at the price of a fork, each of which can be stopped at exact places.

`python -m tests.pipelines.chaos.nursery FD` has everything heavy imported. For each request on the socket FD it
forks, and the child runs `python -m MODULE ARGUMENTS` in all but name: environment, output, signals and exit are a
process's own. Nothing of the product is replaced. The child tells its driver, and waits for an answer, whenever

    {"kind": "step", "applied": n}                          an optimizer step has been applied
    {"kind": "request", "method": "PUT", "path": "/b/key"}  a request to the store is about to be sent
    {"kind": "connect"}                                     a connection to the store is about to be opened

which torch's own optimizer hooks and Python's audit events report. The answer is a list of orders: "poison" (the
network's next input is not a number), "poison for ever" (nor is any later one), "fill" (no room is left on the scratch
volume), "free" (there is again).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

import components.cli
import components.train  # noqa: F401

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
SCRATCH_BYTES = 64 << 20
EXIT_ABANDONED = 99
# What a life would import sooner or later; most of its time otherwise.
LATE_IMPORTS = (
    "boto3.s3.inject", "boto3.s3.transfer", "mlflow.system_metrics.metrics.cpu_monitor",
    "mlflow.system_metrics.metrics.disk_monitor", "mlflow.system_metrics.metrics.gpu_monitor",
    "mlflow.system_metrics.metrics.network_monitor", "mlflow.tracking.request_header.registry", "model.iddpm",
    "netrc", "torch._dynamo",
)  # fmt: skip
METHODS = ("GET", "PUT", "POST", "HEAD", "DELETE")


def import_all() -> None:
    """Import what every life needs."""
    for name in LATE_IMPORTS:
        importlib.import_module(name)


def serve(control: socket.socket) -> None:
    """Give birth, one at a time, until the driver hangs up; in a child this returns when its life has ended."""
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1 << 16, 2)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            live(json.loads(message), *fds)
            return
        for fd in fds:
            os.close(fd)
        control.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        control.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def live(request: dict[str, Any], gate: int, output: int) -> None:
    """Run the module as a fresh interpreter would."""
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    watch = Watch(socket.socket(fileno=gate), request["store_port"], Path(os.environ["TMPDIR"]))
    watch.tell(kind="born", own_scratch=mount_scratch(os.environ["TMPDIR"]))
    register_optimizer_step_post_hook(watch.on_step)
    sys.addaudithook(watch.on_audit)
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


class Watch:
    """Tells the driver what is about to happen or has happened, and does as it is told."""

    def __init__(self, gate: socket.socket, store_port: int, scratch: Path) -> None:
        self._gate, self._store_port, self._ballast = gate, store_port, scratch / "ballast"
        self._answers = gate.makefile("rb")
        self._lock = threading.RLock()

    def tell(self, **event: Any) -> None:
        """Report and wait for the answer; a driver that is gone ends this process too."""
        with self._lock:
            try:
                self._gate.sendall(json.dumps(event).encode() + b"\n")
                answer = self._answers.readline()
            except OSError:
                answer = b""
        if not answer:
            os._exit(EXIT_ABANDONED)
        for order in json.loads(answer):
            if order in ("poison", "poison for ever"):
                poison_inputs(once=order == "poison")
            elif order == "fill":
                fill(self._ballast)
            elif order == "free":
                self._ballast.unlink()

    def on_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """The number of steps is the optimizer's own, so it goes on from parent to child."""
        counts = [int(state["step"]) for state in optimizer.state.values()]
        self.tell(kind="step", applied=max(counts))

    def on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See requests as they leave, whoever sends them."""
        if event == "http.client.send":
            connection, data = arguments
            if connection.port == self._store_port and isinstance(data, bytes):
                method, _, rest = data[:1024].partition(b" ")
                if method.decode(errors="replace") in METHODS:
                    self.tell(kind="request", method=method.decode(), path=rest.split(b" ")[0].decode())
        elif event == "socket.connect":
            address = arguments[1]
            if isinstance(address, tuple) and address[1] == self._store_port:
                self.tell(kind="connect")


def fill(path: Path) -> None:
    """Let a file take all the room that is left on its volume."""
    with path.open("wb", buffering=0) as ballast:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while ballast.write(bytes(size)):
                    pass


def poison_inputs(*, once: bool) -> None:
    """Let whole networks see latents that are not numbers."""

    def poison(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not (inputs and isinstance(inputs[0], torch.Tensor) and inputs[0].dim() == 5):  # B C T H W
            return None
        if once:
            handle.remove()
        return (torch.full_like(inputs[0], torch.nan), *inputs[1:])

    handle = register_module_forward_pre_hook(poison)


def mount_scratch(folder: str) -> bool:
    """A small volume of its own over the folder, seen by this process alone; False where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError:
        return False
    options = f"size={SCRATCH_BYTES}".encode()
    return bool(libc.mount(b"scratch", folder.encode(), b"tmpfs", 0, options) == 0)


if __name__ == "__main__":
    import_all()
    serve(socket.socket(fileno=int(sys.argv[1])))
