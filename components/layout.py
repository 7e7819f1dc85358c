"""Names below the root of a run that more than one component knows."""

import re

CHECKPOINT = "checkpoint"
"""Kind of a checkpoint's manifest."""
STEP_FOLDER = re.compile(r"step-(\d{8})")
"""Folder of a checkpoint below its stage."""
HISTORY, REPORT, SET_ASIDE = "history.json", "report.json", "set-aside.json"
"""Beside a stage's checkpoints: what a running stage remembers, what a finished one tells, digests of checkpoints that
training went back behind."""
PAGE = "report.html"
"""In what `curate` and `evaluate` publish: a page for people."""
GRIDS, COMPARISON = "grids", "comparison"
"""Below the root of a run: what its checkpoints have drawn of fixed prompts, and the page that shows it."""
PROMOTION = "promotion"
"""Annotation of an evaluation: what was decided about the champion."""

ANALYSED, CAPTIONS = "analysed", "captions"
"""Beside the objects: what was measured on them, and what a model said of them."""
KNOWN_FILES = "known-files"
"""Beside the objects: what was found out about the files of a source."""


def step_folder(step: int) -> str:
    """Name of the folder of that step's checkpoint."""
    return f"step-{step:08d}"


def beside(uri: str, name: str) -> str:
    """URI of the sibling of a prefix; a bucket has none, there it lies inside."""
    parent, _, last = uri.rstrip("/").rpartition("/")
    return f"{parent}/{name}" if last and parent and not parent.endswith(":/") else f"{uri.rstrip('/')}/{name}"


def part_folder(part: int, parts: int) -> str:
    """Name of the folder of one part of the shots, counted from 0."""
    return f"shots-{part:05d}-of-{parts:05d}"
