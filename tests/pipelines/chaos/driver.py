"""Starts lives of a stage until it ends, as an orchestrator would, and does to them what the schedule says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from components import manifest, store
from tests.pipelines.chaos.faults import STEPS_PER_INTERVAL, Fault, Trigger, deadly

REPO = Path(__file__).resolve().parents[3]
PATIENCE_S = 500.0
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")} | {"POLARS_MAX_THREADS": "1"}
# Too small for any tensor file; stands in for a full disk where no volume can be mounted.
LARGEST_FILE_BYTES = 512


class Server:
    """A server that can be killed and started again at the same address."""

    def __init__(self, run: Callable[[Path, int | None], AbstractContextManager[str]], root: Path) -> None:
        root.mkdir()
        self._run, self._root = run, root
        self._life = ExitStack()
        self._starting: threading.Thread | None = None
        self.address = self._life.enter_context(run(root, None))
        self.port = int(self.address.rsplit(":", 1)[1])

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.wait_until_up()
        self._life.close()

    def start(self) -> None:
        """Start it again; returns when it answers."""
        self._life.enter_context(self._run(self._root, self.port))

    def start_in_background(self) -> None:
        """Start it again while other things go on."""
        self._starting = threading.Thread(target=self.start)
        self._starting.start()

    def wait_until_up(self) -> None:
        """Return when it answers."""
        if self._starting is not None:
            self._starting.join()
            self._starting = None

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if str(self.port) in child.cmdline():
                    os.killpg(child.pid, number)


@dataclass
class Life:
    """One process of a stage.

    Attributes:
        steps: of each applied step its number, how long it took and when it was over.
    """

    stage: str
    pid: int
    gate: socket.socket
    own_scratch: bool = False
    began_s: float = field(default_factory=time.monotonic)
    ended_s: float = 0.0
    exit_code: int | None = None
    output: str = ""
    faults: list[Fault] = field(default_factory=list)
    steps: list[tuple[int, float]] = field(default_factory=list)
    _unread: bytes = b""
    _answered_s: float = 0.0

    def next_event(self) -> dict[str, Any] | None:
        """What it is about to do or has done; None when it has ended."""
        while b"\n" not in self._unread:
            try:
                data = self.gate.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            except TimeoutError:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"a life of {self.stage} did nothing for {PATIENCE_S:.0f} s") from None
            if not data:
                return None
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        if event["kind"] == "step":
            self.steps.append((event["applied"], time.monotonic() - self._answered_s))
        return event

    def answer(self, orders: list[str]) -> None:
        """Let it go on and do as it is told."""
        self._answered_s = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.gate.sendall(json.dumps(orders).encode() + b"\n")


class Nursery:
    """The process that has everything imported and forks the lives."""

    def __init__(self, log: Path) -> None:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, **ONE_THREAD, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(REPO)}
        command = [sys.executable, "-m", f"{__package__}.nursery", str(theirs.fileno())]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, cwd=REPO, env=environment, pass_fds=[theirs.fileno()], stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        theirs.close()
        self._log = log
        self._control = ours
        self._replies = ours.makefile("rb")

    @contextmanager
    def life(self, stage: str, request: Mapping[str, Any]) -> Iterator[Life]:
        """One process from its birth to its end; it is killed if the body leaves before."""
        gate, its_gate = socket.socketpair()
        source, its_output = os.pipe()
        with gate:
            socket.send_fds(self._control, [json.dumps(request).encode()], [its_gate.fileno(), its_output])
            its_gate.close()
            os.close(its_output)
            gate.settimeout(PATIENCE_S)
            chunks: list[bytes] = []
            reader = threading.Thread(target=_read_all, args=(source, chunks))
            reader.start()
            life = Life(stage, self._reply(), gate)
            try:
                yield life
            except BaseException:
                os.kill(life.pid, signal.SIGKILL)
                raise
            finally:
                life.exit_code = self._reply()
                life.ended_s = time.monotonic()
                reader.join()
                life.output = b"".join(chunks).decode(errors="replace")

    def close(self) -> None:
        """Let it end."""
        self._control.close()
        self._replies.close()
        self._process.wait(timeout=30)

    def _reply(self) -> int:
        line = self._replies.readline()
        assert line, f"the nursery has ended: {self._log.read_text(errors='replace')}"
        return int(line)


def _read_all(source: int, chunks: list[bytes]) -> None:
    with open(source, "rb", buffering=0) as file:
        while chunk := file.read(1 << 16):
            chunks.append(chunk)


@dataclass
class Repair:
    """What follows a fault once so many events of a kind have come."""

    kind: str
    left: int
    action: Callable[[], str | None]  # returns an order for the process, if any
    even_at_the_end: bool = True


class Driver:
    """Runs stages under faults.

    Args:
        nursery: makes the processes.
        object_store, tracking: the servers they use; without tracking nothing is tracked.
        scratch: folder for their temporary files.
        environment: theirs.
    """

    def __init__(
        self, nursery: Nursery, object_store: Server, tracking: Server | None, scratch: Path,
        environment: Mapping[str, str],
    ) -> None:  # fmt: skip
        self._nursery, self._store, self._tracking = nursery, object_store, tracking
        scratch.mkdir()
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._environment = {**kept, **ONE_THREAD, **environment, "TMPDIR": str(scratch)}
        if tracking is not None:
            self._environment["MLFLOW_TRACKING_URI"] = tracking.address
        self._repairs: list[Repair] = []
        self.lives: list[Life] = []

    def run_stage(
        self, stage: str, arguments: list[str], out: str, faults: list[Fault] | None = None, *, steps_before: int = 0
    ) -> Life:
        """Start one life after the other until one ends well.

        Args:
            stage: its name.
            arguments: of `python -m components.train`.
            out: URI of the stage.
            faults: what is to go wrong, in order.
            steps_before: optimizer steps of the stages before.
        """
        left = list(faults or [])
        for _ in range(2 * len(left) + 2):
            if self._tracking is not None and len(left) <= 1:
                self._tracking.wait_until_up()
            life = self.live(stage, arguments, left, steps_before=steps_before)
            if life.exit_code == 0:
                assert not left, f"{stage} ended before {left[0]}"
                return life
            while left and left[0].place == "between lives":
                life.faults.append(left[0])
                damage(out, left.pop(0))
        raise AssertionError(f"{stage} does not end; its last life said: {self.lives[-1].output}")

    def live(self, stage: str, arguments: list[str], faults: list[Fault], *, steps_before: int = 0) -> Life:
        """One life; the faults that strike it are taken from the front of the list."""
        request = {
            "module": "components.train", "arguments": arguments, "environment": self._environment,
            "store_port": self._store.port,
        }  # fmt: skip
        with self._nursery.life(stage, request) as life:
            self.lives.append(life)
            trigger = Trigger(faults[0], steps_before) if faults else None
            while (event := life.next_event()) is not None:
                life.own_scratch = event.get("own_scratch", life.own_scratch)
                orders = self._repair(event["kind"])
                if trigger is not None and trigger(event):
                    life.faults.append(faults.pop(0))
                    orders.append(self._strike(life, life.faults[-1]))
                    over = not faults or deadly(life.faults[-1])
                    trigger = None if over else Trigger(faults[0], steps_before)
                life.answer([order for order in orders if order])
            self._repair(None)
        return life

    def _repair(self, kind: str | None) -> list[str | None]:
        """Do what is due after one more event of that kind, or, with None, all that is not only for the living."""
        orders = []
        for repair in list(self._repairs):
            repair.left -= repair.kind == kind
            if repair.left <= 0 or kind is None:
                self._repairs.remove(repair)
                if kind is not None or repair.even_at_the_end:
                    orders.append(repair.action())
        return orders

    def _strike(self, life: Life, fault: Fault) -> str | None:
        """Let the fault happen; returns the order for the process, if any."""
        if fault.kind in ("SIGKILL", "SIGTERM"):
            os.kill(life.pid, signal.Signals[fault.kind])
        elif fault.kind == "store killed":
            self._store.kill()
            self._repairs.append(Repair("connect", 1 + int(fault.draw * 3), self._store.start))
        elif fault.kind == "tracking killed":
            assert self._tracking is not None
            self._tracking.kill()
            self._tracking.start_in_background()
        elif fault.kind == "tracking frozen":
            assert self._tracking is not None
            self._tracking.wait_until_up()
            self._tracking.signal(signal.SIGSTOP)
            thaw = partial(self._tracking.signal, signal.SIGCONT)
            self._repairs.append(Repair("step", 2 + int(fault.draw * 3), thaw))
        elif fault.kind == "disk full":
            return self._fill_disk(life)
        elif fault.kind == "NaN then SIGKILL":
            kill = partial(os.kill, life.pid, signal.SIGKILL)
            self._repairs.append(Repair("step", 1, kill, even_at_the_end=False))
        return {"NaN then SIGKILL": "poison", "NaN": "poison", "NaN for ever": "poison for ever"}.get(fault.kind)

    def _fill_disk(self, life: Life) -> str | None:
        """Leave no room until the next checkpoint should have been written."""
        steps = STEPS_PER_INTERVAL + 1
        if life.own_scratch:
            self._repairs.append(Repair("step", steps, lambda: "free", even_at_the_end=False))
            return "fill"
        before, _ = resource.prlimit(life.pid, resource.RLIMIT_FSIZE)
        _limit_files(life.pid, LARGEST_FILE_BYTES)
        self._repairs.append(Repair("step", steps, partial(_limit_files, life.pid, before), even_at_the_end=False))
        return None


def _limit_files(pid: int, size_bytes: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))


def damage(out: str, fault: Fault) -> None:
    """Damage the newest published checkpoint of a stage in the store."""
    keys = [item.key for item in store.list_objects(out)]
    newest = max(key.split("/")[0] for key in keys if re.fullmatch(rf"step-\d{{8}}/{manifest.NAME}", key))
    files = sorted(manifest.load(store.join(out, newest)).files)
    victim = store.join(out, newest, files[int(fault.draw * len(files))])
    if fault.kind == "manifest lost":
        store.delete(store.join(out, newest, manifest.NAME))
    elif fault.kind == "file lost":
        store.delete(victim)
    else:
        content = bytearray(store.read_bytes(victim))
        if fault.kind == "file cut short":
            content = content[: len(content) // 2]
        else:
            content[int(fault.draw * len(content))] ^= 1
        store.write_bytes(victim, bytes(content))
