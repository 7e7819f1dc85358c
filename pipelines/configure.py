"""The first task of the graph: from what a person filled in to what every other task is told.

The compiled graph holds one checked preset. A run may change single values of it, name another preset of the image, and
say where in the chain to start and to stop; a mistake ends the run here, before any work.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from components import store
from components.config import parse
from components.errors import KinoflowError
from pipelines.config import RunConfig, override, preset_values
from pipelines.shell import as_task
from pipelines.skipping import Skip


def chain(config: RunConfig) -> list[str]:
    """What a run may start at and stop after, in order: the names of the prefixes below its root."""
    return list(config.component_configs())


def configure(
    compiled: str, *, preset: str, overrides: str, start_at: str, stop_after: str, from_run: str
) -> dict[str, str]:
    """What every part of the chain is told, by its name.

    Args:
        compiled: the RunConfig that the graph was made from, as JSON.
        preset: name of that one, or of another that comes with the package.
        overrides: YAML or JSON of dotted keys and values, such as `{stages.0.steps: 500}`; may be empty.
        start_at: first part that works; all when empty.
        stop_after: last part that works; all when empty.
        from_run: URI of the run whose results are taken before `start_at`; this run's own when empty.

    Raises:
        KinoflowError: one of them makes no sense.
    """
    base = parse(RunConfig, compiled, "the compiled preset")
    values = json.loads(compiled) if preset in ("", base.preset) else preset_values(preset)
    for key, value in _changes(overrides).items():
        override(values, key, value)
    config = parse(RunConfig, values, f"preset {preset or base.preset} with overrides")
    parts = chain(config)
    if parts != chain(base):
        raise KinoflowError(
            f"The preset {preset} has the stages {', '.join(s.name for s in config.stages)}, this version of the "
            f"pipeline {', '.join(s.name for s in base.stages)}; register one with `kinoflow submit -p {preset}`."
        )
    first, last = _position(parts, "start_at", start_at, 0), _position(parts, "stop_after", stop_after, len(parts) - 1)
    if first > last:
        raise KinoflowError(f"start_at {start_at} comes after stop_after {stop_after}; nothing would be done.")
    if from_run and not start_at:
        raise KinoflowError(f"from_run is {from_run}, but start_at says nothing of where to go on from it.")
    told = {}
    for index, (name, section) in enumerate(config.component_configs().items()):
        if index < first:
            told[name] = Skip(skip="before", root=from_run.rstrip("/")).model_dump_json()
        else:
            told[name] = section.model_dump_json() if index <= last else Skip(skip="after").model_dump_json()
    return told


def _changes(text: str) -> dict[str, Any]:
    try:
        changes = yaml.safe_load(text) if text.strip() else {}
    except yaml.YAMLError as error:
        raise KinoflowError(f"overrides is not valid YAML or JSON: {error}.") from error
    if not isinstance(changes, dict) or not all(isinstance(key, str) for key in changes):
        raise KinoflowError("overrides must be keys and values, for example {stages.0.steps: 500, seed: 7}.")
    return changes


def _position(parts: list[str], what: str, given: str, default: int) -> int:
    if not given:
        return default
    if given not in parts:
        raise KinoflowError(f"{what} is {given!r}; choose one of {', '.join(parts)}, or leave it empty.")
    return parts.index(given)


def write_configs(paths: Sequence[str], **inputs: str) -> None:
    """Run `configure` as a pipeline task: one file for every part of the chain, in its order.

    Args:
        paths: local files, in the order of the chain.
        inputs: see `configure`.
    """
    with as_task("configure"):
        told = configure(**inputs)
        for path, text in zip(paths, told.values(), strict=True):
            store.write_bytes(str(Path(path).resolve()), text.encode())
