"""`python -m components.curate`: turn ingested files into clips; `… part` and `… merge` do it on several machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components import config as configs
from components import curate
from components.cli import run_cli

Videos = Annotated[str, typer.Option(help="URI prefix that ingest published.")]
Objects = Annotated[str, typer.Option(help="URI prefix of the content-addressed objects.")]
Out = Annotated[str, typer.Option(help="URI prefix of the published table.")]
Config = Annotated[Path | None, typer.Option(help="YAML or JSON file; defaults when absent.")]


def main(videos: Videos, objects: Objects, out: Out, config: Config = None) -> None:
    """Find, measure, caption and decide the clips of all ingested files.

    `part` and `merge` as first argument do the same in several processes; each has a --help of its own.
    """
    typer.echo(curate.curate(_settings(config), videos, objects, out).model_dump_json())


def part(
    videos: Videos,
    objects: Objects,
    out: Out,
    part: Annotated[int, typer.Option(min=0, help="Which part, from 0.")],
    parts: Annotated[int, typer.Option(min=1, help="How many there are.")],
    config: Config = None,
) -> None:
    """Find and measure the shots of one part of the ingested files."""
    typer.echo(curate.curate_part(_settings(config), videos, objects, out, part, parts).model_dump_json())


def merge(
    videos: Videos,
    objects: Objects,
    shots: Annotated[str, typer.Option(help="URI prefix below which all parts lie.")],
    parts: Annotated[int, typer.Option(min=1, help="How many there are.")],
    out: Out,
    config: Config = None,
) -> None:
    """Decide about the shots of all parts."""
    typer.echo(curate.merge(_settings(config), videos, objects, shots, parts, out).model_dump_json())


def _settings(config: Path | None) -> configs.CurateConfig:
    return configs.load(configs.CurateConfig, config) if config else configs.CurateConfig()


if __name__ == "__main__":
    run_cli(main, part=part, merge=merge)
