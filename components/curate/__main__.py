"""`python -m components.curate`: turn ingested files into clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components import config as configs
from components.cli import run_cli
from components.curate import curate


def main(
    videos: Annotated[str, typer.Option(help="URI prefix that ingest published.")],
    objects: Annotated[str, typer.Option(help="URI prefix of the content-addressed objects.")],
    out: Annotated[str, typer.Option(help="URI prefix of the published table.")],
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file; defaults when absent.")] = None,
) -> None:
    """Find, measure, caption and decide the clips of all ingested files."""
    settings = configs.load(configs.CurateConfig, config) if config else configs.CurateConfig()
    typer.echo(curate(settings, videos, objects, out).model_dump_json())


if __name__ == "__main__":
    run_cli(main)
