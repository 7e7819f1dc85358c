"""`python -m components.pack`: cut kept clips into tar shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components import config as configs
from components.cli import run_cli
from components.pack import pack
from components.pack_config import PackConfig


def main(
    clips: Annotated[str, typer.Option(help="URI prefix that curation published.")],
    objects: Annotated[str, typer.Option(help="URI prefix of the content-addressed objects.")],
    out: Annotated[str, typer.Option(help="URI prefix of the shards.")],
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file; defaults when absent.")] = None,
) -> None:
    """Cut the kept clips into tar shards with an index."""
    settings = configs.load(PackConfig, config) if config else PackConfig()
    typer.echo(pack(settings, clips, objects, out).model_dump_json())


if __name__ == "__main__":
    run_cli(main)
