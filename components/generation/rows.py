"""Lists of prompts: text files of one prompt a line, and tables with settings of their own in every row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from components import store
from components.errors import KinoflowError
from components.generation.settings import GenerationConfig

TABLE_SUFFIXES = (".csv", ".parquet", ".jsonl", ".ndjson")
SAMPLING_KEYS = ("guidance_scale", "num_inference_steps", "method", "fps", "saved_fps", "cfg_channel")
SETTING_KEYS = tuple(name for name in GenerationConfig.model_fields if name != "sampling")
COLUMNS = ("prompt", "reference_path", "name", "size", *SETTING_KEYS, *SAMPLING_KEYS)


@dataclass(frozen=True)
class Row:
    """One prompt.

    Attributes:
        prompt: as written.
        references: where they lie.
        name: of its files; numbered when None.
        changes: what differs from the settings of all, by the names of `GenerationConfig` and `SamplingConfig`.
    """

    prompt: str
    references: tuple[str, ...] = ()
    name: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


def read_rows(place: str) -> list[Row]:
    """The prompts of a list: a table (.csv, .parquet, .jsonl) by its suffix, else a text file of one a line.

    Raises:
        KinoflowError: it cannot be read, holds none, or has a column without a meaning.
    """
    try:
        data = store.read_bytes(place) if store.is_s3(place) else Path(place).expanduser().read_bytes()
    except OSError as error:
        raise KinoflowError(f"The prompts {place} cannot be read: {error.strerror}.") from error
    suffix = Path(place).suffix.lower()
    try:
        if suffix not in TABLE_SUFFIXES:
            lines = (line.strip() for line in data.decode("utf-8-sig").splitlines())
            rows = [Row(line) for line in lines if line]
        else:
            rows = [_row(values, place) for values in _values(data, suffix)]
    except (ValueError, csv.Error, pl.exceptions.PolarsError) as error:
        raise KinoflowError(f"The prompts {place} cannot be read: {str(error).rstrip('.')}.") from error
    if not rows:
        raise KinoflowError(f"{place} holds no prompts; write one a line, or a table with the column 'prompt'.")
    return rows


def split_references(text: str | None) -> tuple[str, ...]:
    """The places in `path;path;…`."""
    return tuple(part.strip() for part in (text or "").split(";") if part.strip())


def with_changes(config: GenerationConfig, changes: Mapping[str, Any]) -> GenerationConfig:
    """The configuration with some values replaced, and checked again; `ValidationError` names what does not fit."""
    own = {name: value for name, value in changes.items() if name not in SAMPLING_KEYS}
    sampling = {name: value for name, value in changes.items() if name in SAMPLING_KEYS}
    values = config.model_dump() | own
    values["sampling"] = config.sampling.model_dump() | sampling
    return GenerationConfig.model_validate(values)


def _values(data: bytes, suffix: str) -> Iterable[Mapping[str, Any]]:
    if suffix == ".csv":
        return csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    if suffix == ".parquet":
        return pl.read_parquet(io.BytesIO(data)).to_dicts()
    return [json.loads(line) for line in data.decode("utf-8-sig").splitlines() if line.strip()]


def _row(values: Mapping[str, Any], place: str) -> Row:
    if not isinstance(values, Mapping) or "prompt" not in values:
        raise KinoflowError(f"The table {place} needs a column 'prompt'.")
    unknown = [str(name) for name in values if name not in COLUMNS]
    if unknown:
        raise KinoflowError(
            f"The table {place} has the column {unknown[0]!r}, which means nothing here; it can have "
            f"{', '.join(COLUMNS)}."
        )
    given = {name: value for name, value in values.items() if value is not None and value != ""}
    name = given.pop("name", None)
    return Row(
        str(given.pop("prompt", "")),
        split_references(given.pop("reference_path", None)),
        None if name is None else str(name),
        given,
    )
