"""The process in which kfp runs a compiled graph: `python -m pipelines.local.child PIPELINE ARGUMENTS ROOT`.

kfp keeps global state and leaves its tasks running when it is killed, so the graph gets a process and a session of
its own. Standard input is a pipe held by the parent: when it closes, for whatever reason, the whole group ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path


def main(pipeline: Path, arguments: Path, root: Path) -> None:
    """Run the compiled graph with the arguments in a JSON file; task folders go below `root`."""
    _end_with_parent()
    signal.signal(signal.SIGTERM, _leave_to_the_task)
    warnings.filterwarnings("ignore", module=r"kfp\..*")
    from kfp import components, local

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    graph = components.load_component_from_file(str(pipeline))
    graph(**json.loads(arguments.read_text(encoding="utf-8")))


def _leave_to_the_task(number: int, frame: object) -> None:
    """SIGTERM reaches the running task too, which may have something to save: this process ends with it."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        sys.exit(128 + number)


def _end_with_parent() -> None:
    """Kill this process group as soon as the parent closes its end of standard input."""
    parent = os.dup(sys.stdin.fileno())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)

    def watch() -> None:
        while os.read(parent, 1):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
