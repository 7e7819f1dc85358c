"""Train: one stage, from a bucket output and a parent checkpoint to the next checkpoint.

Killed at any moment and started again, it goes on from the newest good checkpoint and ends with the same bytes. Told to
stop by SIGTERM or SIGINT it saves one and ends with exit code 75 (`components.cli.EXIT_PREEMPTED`), which asks to be
started again and is no error; when nothing moves any more it ends with 70 (`EXIT_HUNG`).

Where several ranks train and nobody has launched them, the stage starts those of this machine itself.
"""

from __future__ import annotations

from components.config import TrackingConfig, TrainConfig
from components.errors import KinoflowError
from components.train.interruption import Interruption
from components.train.launch import launch, num_processes
from components.train.report import TrainReport, read_report
from components.train.stage import Stage
from model.parallel import deterministic_algorithms, joined_ranks


def train(config: TrainConfig, tracking: TrackingConfig, *, data: str, parent: str | None, out: str) -> TrainReport:
    """Run one stage to its end, or go on with one that was interrupted; one that has ended is left alone.

    Args:
        config: the stage.
        tracking: where the run appears in MLflow.
        data: URI prefix of the bucket output.
        parent: URI of the checkpoint to start from; the config's `start_from`, or fresh weights, when absent.
        out: URI prefix of the stage: checkpoints, history.json and, at the end, report.json.

    Raises:
        KinoflowError: data, plan, parent and configuration do not fit together, loss or gradient stay out of bounds,
            or the result does not pass the stage's gate.
        SystemExit: told to stop; everything is saved.
    """
    if processes := num_processes(config):
        launch(config, tracking, processes, data=data, parent=parent, out=out)
        report = read_report(out)
        if report is None:
            raise KinoflowError(f"Stage {config.name!r}: its ranks have ended, but there is no report at {out}.")
        return report
    try:
        with (
            Interruption(config.grace_s) as interruption,
            deterministic_algorithms(),
            joined_ranks(config.parallel, config.sequence_parallel) as ranks,
        ):
            start = parent or config.start_from
            return Stage(config, ranks, interruption, data=data, parent=start, out=out).run(tracking)
    except ValueError as error:  # what model/ calls a mistake
        raise KinoflowError(f"Stage {config.name!r}: {error}") from error
