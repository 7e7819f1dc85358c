"""Names below the root of a run that more than one component knows."""

import re

CHECKPOINT = "checkpoint"
"""Kind of a checkpoint's manifest."""
STEP_FOLDER = re.compile(r"step-(\d{8})")
"""Folder of a checkpoint below its stage."""
HISTORY, REPORT, SET_ASIDE = "history.json", "report.json", "set-aside.json"
"""Beside a stage's checkpoints: what a running stage remembers, what a finished one tells, digests of checkpoints that
training went back behind."""


def step_folder(step: int) -> str:
    """Name of the folder of that step's checkpoint."""
    return f"step-{step:08d}"
