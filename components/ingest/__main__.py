"""`python -m components.ingest`: bring videos into the object store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components import config as configs
from components.cli import run_cli
from components.ingest import ingest


def main(
    source: Annotated[
        str, typer.Option(help="Folder, s3:// prefix, .csv/.parquet/.jsonl, list, .tar, address or pattern.")
    ],
    objects: Annotated[str, typer.Option(help="URI prefix of the content-addressed objects.")],
    out: Annotated[str, typer.Option(help="URI prefix of the published table.")],
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file; defaults when absent.")] = None,
) -> None:
    """Bring every file of a source into the object store and publish the table of videos."""
    settings = configs.load(configs.IngestConfig, config) if config else configs.IngestConfig()
    typer.echo(ingest(settings, source, objects, out).model_dump_json())


if __name__ == "__main__":
    run_cli(main)
