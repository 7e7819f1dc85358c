"""The option `--set key=value` of the commands that take a preset."""

from __future__ import annotations

from typing import Any

import yaml

from components.errors import KinoflowError


def changes(given: list[str] | None) -> dict[str, Any]:
    """The values that `--set` names, by dotted key.

    Raises:
        KinoflowError: one is not of the form key=value.
    """
    return dict(_change(text) for text in given or [])


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise KinoflowError(f"--set {text}: write key=value, for example stages.0.steps=50.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise KinoflowError(f"--set {text}: the value is not valid YAML.") from error
