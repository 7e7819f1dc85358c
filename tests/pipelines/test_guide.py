"""Every `kinoflow` command of the cluster guide exists with the options it is written with."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from pipelines.cli import app

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "docs" / "cluster.md").read_text(encoding="utf-8")
FOUND = re.findall(r"(?:^|`)(kinoflow [a-z][^`\n]*)", TEXT, re.MULTILINE)
WRITTEN = sorted({line.partition("#")[0].strip() for line in FOUND})


@pytest.mark.parametrize("line", WRITTEN)
def test_the_command_exists_as_it_is_written(line: str) -> None:
    commands: dict[str, Any] = getattr(typer.main.get_command(app), "commands")  # noqa: B009
    name, *arguments = shlex.split(line)[1:]
    options = {flag for parameter in commands[name].params for flag in [*parameter.opts, *parameter.secondary_opts]}
    assert {one for one in arguments if one.startswith("-")} <= options


def test_charts_and_their_jobs_are_there() -> None:
    for chart in re.findall(r"helm (?:install|upgrade) [a-z-]+ (charts/[a-z-]+)", TEXT):
        assert (REPO / chart / "Chart.yaml").is_file()
    templates = "".join(path.read_text() for path in (REPO / "charts").rglob("templates/**/*.yaml"))
    for job in re.findall(r"--from=cronjob/([a-z-]+)", TEXT):
        assert f"name: {job}" in templates
