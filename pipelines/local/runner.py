"""One run of the compiled graph on this machine: compile, start the services, run, watch, sum up.

Everything about a run lies in `runs/<name>/`: the compiled graph, the log, and afterwards the summary and what the
evaluation made. A run of the same name goes on where it stopped, because stages skip what is already published.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from components import store
from components.cli import PROGRESS_FILE_VARIABLE
from components.errors import KinoflowError
from pipelines.config import RUN_CONFIG, RunConfig
from pipelines.local.display import EventFile, RunDisplay
from pipelines.local.retries import Budgets, Cause, cause_of, run_until_done
from pipelines.local.services import MLFLOW, Ports, Services, running_services
from pipelines.local.summary import Summary, collect_outputs, make_summary, print_summary
from pipelines.shell import WAIT_VARIABLE

MIN_FREE_BYTES = 1 << 30
POLL_S = 0.2
STOP_TIMEOUT_S = 30.0  # a stage that trains saves first, within its grace time
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class RunError(KinoflowError):
    """A stage failed; the sentence says why and where the log lies."""


@dataclass(frozen=True)
class RunRequest:
    """What to run and where its parts go.

    Attributes:
        source: folder, s3:// prefix or table of videos.
        name: of the run, in `runs/`, in the store and in MLflow.
        base: URI below which `runs/<name>`, `objects` and `latents` lie.
        source_version: version of the source data; empty when unknown.
        budgets: how often it is started again by itself.
    """

    config: RunConfig
    source: str
    name: str
    base: str
    experiment: str = "kinoflow"
    source_version: str = ""
    budgets: Budgets = field(default_factory=Budgets)

    @property
    def root(self) -> str:
        """URI prefix that all stages write below."""
        return store.join(self.base, "runs", self.name)

    def arguments(self) -> dict[str, str]:
        """The graph's inputs."""
        return {
            "source": self.source,
            "root": self.root,
            "objects": store.join(self.base, "objects"),
            "latents": store.join(self.base, "latents"),
            "run_name": self.name,
            "experiment": self.experiment,
            "source_version": self.source_version,
        }


def run(request: RunRequest, home: Path, ports: Ports, console: Console) -> Summary:
    """Run the graph and return what came of it; `home` is the folder of the embedded services.

    Raises:
        KinoflowError: bad input, found before work starts.
        RunError: a stage failed.
    """
    folder = run_folder(home, request.name)
    _check_disk(folder)
    with _only_run_in(folder, request.name):
        started_s = time.monotonic()
        with running_services(home, ports) as services:
            store.ensure_bucket(request.base)
            _say(console, f"run {request.name} of preset {request.config.preset}, log {folder}/pipeline.log")
            _say(console, f"store {services.endpoint}  tracking {services.tracking_uri}")
            _run_graph(request, folder, services, console)
            summary = make_summary(
                request.config, request.name, request.root, time.monotonic() - started_s,
                services.tracking_uri, request.experiment,
            )  # fmt: skip
            collect_outputs(request.root, folder)
        store.write_bytes(str(folder / "summary.json"), summary.model_dump_json(indent=1).encode())
        print_summary(summary, folder, console)
        return summary


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def run_folder(home: Path, name: str) -> Path:
    """The local folder of a run.

    Raises:
        KinoflowError: the name cannot be used.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise KinoflowError(
            f"The run name {name!r} cannot be used; take small letters, digits, '.', '_' and '-', at most 63."
        )
    return home.parent / "runs" / name


def _check_disk(folder: Path) -> None:
    scratch = Path(tempfile.gettempdir())
    for there, advice in (
        (next(parent for parent in folder.parents if parent.exists()), "free some"),
        (scratch, "free some, or name a larger folder with TMPDIR"),
    ):
        free = shutil.disk_usage(there).free
        if free < MIN_FREE_BYTES:
            raise KinoflowError(
                f"Only {free >> 20} MiB are free below {there}; a run needs at least {MIN_FREE_BYTES >> 20} MiB, "
                f"{advice}."
            )


@contextmanager
def _only_run_in(folder: Path, name: str) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a", encoding="utf-8")
    except OSError as error:
        raise KinoflowError(f"Could not write to {folder}: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise KinoflowError(
                f"A run named {name!r} is already going on; wait for it or use another name."
            ) from error
        yield


def _run_graph(request: RunRequest, folder: Path, services: Services, console: Console) -> None:
    """Compile, and run in child processes of their own sessions, one after the other, until all stages are done."""
    from pipelines.text_to_video import compile_pipeline

    pipeline, arguments, events = folder / "pipeline.yaml", folder / "arguments.json", folder / "events.jsonl"
    compile_pipeline(request.config, pipeline)
    arguments.write_text(json.dumps(request.arguments(), indent=1) + "\n", encoding="utf-8")
    (folder / RUN_CONFIG).write_text(request.config.model_dump_json(indent=1) + "\n", encoding="utf-8")
    events.unlink(missing_ok=True)
    environment = {**os.environ, PROGRESS_FILE_VARIABLE: str(events), "PYTHONUNBUFFERED": "1"}
    if MLFLOW in services.embedded:
        environment[WAIT_VARIABLE] = f"{services.embedded[MLFLOW]}/health"
    command = [
        sys.executable, "-m", "pipelines.local.child", str(pipeline), str(arguments), str(folder / "kfp")
    ]  # fmt: skip
    log_path = folder / "pipeline.log"
    display = RunDisplay(request.config.nodes(), console)
    file, reason = EventFile(events), ""
    with log_path.open("ab") as log, display:

        def attempt() -> Cause | None:
            nonlocal reason
            with _child(command, environment, log.fileno()) as process:
                code, told = _watch(process, file, display)
            sentences = (str(event.get("error", event.get("sentence", ""))) for event in told)
            reason = next(filter(None, sentences), f"the pipeline process ended with code {code}.")
            return cause_of(told) if code else None

        cause = run_until_done(attempt, request.budgets, lambda text: _say(console, text))
    if cause:
        raise RunError(f"{reason.rstrip()} (log: {log_path})")


@contextmanager
def _child(command: list[str], environment: dict[str, str], log: int) -> Iterator[subprocess.Popen[bytes]]:
    """The process, whose whole group is gone when the body ends, however it ends."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        yield process
    finally:
        _end_group(process)
        if process.stdin:
            process.stdin.close()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _watch(
    process: subprocess.Popen[bytes], events: EventFile, display: RunDisplay
) -> tuple[int, list[dict[str, Any]]]:
    """Show events until the process ends; its exit code and all that it told."""
    told: list[dict[str, Any]] = []
    while True:
        code = process.poll()
        for event in events.new_events():
            told.append(event)
            display.handle(event)
        if code is not None:
            return code, told
        time.sleep(POLL_S)
