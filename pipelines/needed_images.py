"""Which images a cluster must be able to pull: read from the rendered charts and the compiled graph themselves."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.errors import KinoflowError

NAMESPACE = "kinoflow-images"
"""Rendered for no namespace that exists: a workspace refuses the platform's own."""


@dataclass(frozen=True, order=True)
class Needed:
    """An image and who starts it.

    Attributes:
        image: with its tag or digest.
        by: a chart's object, such as `platform Deployment/mlflow`, or `pipeline train`.
    """

    image: str
    by: str


def of_chart(folder: Path, values: Path | None) -> list[Needed]:
    """Images of one chart, as Helm renders it with these values.

    Raises:
        KinoflowError: there is no such chart, the values are refused, or nothing here can render it.
    """
    if not (folder / "Chart.yaml").is_file():
        raise KinoflowError(f"There is no chart in {folder}; name the folder of the charts with --charts.")
    if values is not None and not values.is_file():
        raise KinoflowError(f"There is no file {values}; give --values CHART=FILE.")
    found = []
    for manifest in yaml.safe_load_all(_rendered(folder, values)):
        if manifest:
            name = f"{folder.name} {manifest['kind']}/{manifest['metadata']['name']}"
            found += [Needed(image, name) for image in _images(manifest)]
    return found


def of_pipeline(compiled: Path) -> list[Needed]:
    """Images of the tasks of a compiled graph.

    Raises:
        KinoflowError: it is no compiled graph.
    """
    try:
        graph = next(iter(yaml.safe_load_all(compiled.read_text(encoding="utf-8"))))
        executors = graph["deploymentSpec"]["executors"]
    except (OSError, yaml.YAMLError, KeyError, TypeError, StopIteration) as error:
        raise KinoflowError(f"{compiled} is no compiled pipeline; make one with `kinoflow compile`.") from error
    return [Needed(image, f"pipeline {name.removeprefix('exec-')}") for name, one in executors.items()
            for image in _images(one)]  # fmt: skip


def by_image(needed: Iterable[Needed]) -> dict[str, list[str]]:
    """Every image once, with everything that starts it, both in order."""
    found: dict[str, set[str]] = {}
    for one in needed:
        found.setdefault(one.image, set()).add(one.by)
    return {image: sorted(users) for image, users in sorted(found.items())}


def _images(node: Any) -> Iterator[str]:
    """Every `image` below a manifest, wherever containers hide in it; an empty one is the platform's to fill in."""
    if isinstance(node, Mapping):
        image = node.get("image")
        if isinstance(image, str) and image:
            yield image
        for value in node.values():
            yield from _images(value)
    elif isinstance(node, list):
        for value in node:
            yield from _images(value)


def _rendered(folder: Path, values: Path | None) -> str:
    """All manifests of a chart as one YAML text, by the `helm` on PATH, else by Helm's library."""
    if shutil.which("helm"):
        command = ["helm", "template", "kinoflow", str(folder), "--namespace", NAMESPACE]
        done = subprocess.run(
            [*command, *(["--values", str(values)] if values else [])], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise KinoflowError(_refused(folder, done.stderr))
        return done.stdout
    try:
        import helm_python
    except ModuleNotFoundError as error:
        raise KinoflowError("Charts are rendered by Helm: install `helm`, or the package helm-python-sdk.") from error
    given = (yaml.safe_load(values.read_text(encoding="utf-8")) or {}) if values else {}
    try:
        with helm_python.Chart.load(str(folder)) as chart:
            chart.validate_schema(given)
            files = chart.render(given, name="kinoflow", namespace=NAMESPACE)
    except helm_python.HelmError as error:
        raise KinoflowError(_refused(folder, str(error))) from error
    return "\n---\n".join(text for path, text in sorted(files.items()) if path.endswith(".yaml"))


def _refused(folder: Path, reason: str) -> str:
    return f"The chart {folder.name} cannot be rendered: {' '.join(reason.split())}"
