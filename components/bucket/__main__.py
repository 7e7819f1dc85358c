"""`python -m components.bucket`: plan the training stages and encode what they need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components import config as configs
from components.bucket import bucket
from components.cli import run_cli


def main(
    config: Annotated[Path, typer.Option(help="YAML or JSON file with the stages.")],
    clips: Annotated[str, typer.Option(help="URI prefix that curation published.")],
    objects: Annotated[str, typer.Option(help="URI prefix of the source files.")],
    latents: Annotated[str, typer.Option(help="URI prefix of latents and text features; runs share it.")],
    out: Annotated[str, typer.Option(help="URI prefix of plans, index and encoders.")],
) -> None:
    """Plan every training stage and encode every window and caption that a plan names."""
    settings = configs.load(configs.BucketConfig, config)
    typer.echo(bucket(settings, clips, objects, latents, out).model_dump_json())


if __name__ == "__main__":
    run_cli(main)
