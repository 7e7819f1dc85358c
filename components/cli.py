"""How every command line of a stage starts and ends: logging on, mistakes as one sentence, exit code 1."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import typer
from pydantic import ValidationError

from components.errors import KinoflowError, missing_package
from components.progress import append_event

PROGRESS_FILE_VARIABLE = "KINOFLOW_PROGRESS_FILE"
OURS = ("model", "components", "pipelines")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: work was told to stop (SIGTERM, SIGINT), has saved what it could and wants to go on.
An orchestrator may start it again without counting an error."""
EXIT_HUNG = 70
"""EX_SOFTWARE of sysexits.h: no progress for too long, every thread's stack is in the log. Counts as an error."""


def run_cli(function: Callable[..., Any], **others: Callable[..., Any]) -> None:
    """Run `function` as a command line (typer options from its signature) and leave the process.

    When the first argument names one of `others`, that one is run with the rest.

    `KinoflowError`, pydantic's `ValidationError` and a `ValueError` raised by the package `model` are the user's
    to mend: one sentence on stderr, exit code 1. Anything else is a fault of the program and keeps its traceback.
    Both are also appended as `{"error": sentence}` to the file in `KINOFLOW_PROGRESS_FILE`, for a parent to show.
    """
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("botocore", "boto3", "s3transfer", "urllib3", "httpx", "pyscenedetect", "PIL", "libav"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if len(sys.argv) > 1 and sys.argv[1] in others:
        function = others[sys.argv.pop(1)]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        sentence = user_sentence(error)
        report_error(sentence or f"{type(error).__name__}: {error}")
        if sentence is None:
            raise
        sys.stderr.write(f"error: {sentence}\n")
        sys.exit(EXIT_FAILED)


def user_sentence(error: Exception) -> str | None:
    """The one line to show for a mistake the user can mend; None when the program itself is at fault."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or error.title
        return _one_line(f"{key}: {first['msg'].removeprefix('Value error, ')}.")
    if isinstance(error, KinoflowError) or (isinstance(error, ValueError) and _raised_in_model(error.__traceback__)):
        return _one_line(str(error))
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] not in OURS:
        return missing_package(error)
    return _disk_sentence(error)


def _disk_sentence(error: BaseException) -> str | None:
    """A full disk, however a library dressed it up; Rust's have no errno, and some keep the cause to themselves."""
    cause: BaseException | None = error
    while cause is not None:
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or os.strerror(errno.ENOSPC) in str(cause):
            where = cause.filename if isinstance(cause, OSError) and cause.filename else tempfile.gettempdir()
            return _one_line(f"The disk is full (while writing {where}); free some space and start again.")
        cause = cause.__cause__ or cause.__context__
    return None


def report_error(sentence: str) -> None:
    """Append `{"error": sentence}` to the progress file when a parent process gave one; tell torch's launcher too."""
    _append({"error": _one_line(sentence)})
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": _one_line(sentence), "timestamp": int(time.time())}), "utf-8")


def report_ending(code: int, sentence: str) -> None:
    """Append `{"ending": code, "sentence": sentence}`: why work ends that is worth starting again."""
    _append({"ending": code, "sentence": _one_line(sentence)})


def _append(event: dict[str, object]) -> None:
    path = os.environ.get(PROGRESS_FILE_VARIABLE)
    if path:
        append_event(path, event)


def _raised_in_model(trace: TracebackType | None) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("model.")


def _one_line(text: str) -> str:
    return " ".join(text.split())
