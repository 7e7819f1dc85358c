"""`python -m components.train`: run one training stage."""

from pathlib import Path
from typing import Annotated

import typer

from components import config as configs
from components.cli import run_cli
from components.train import train


def main(
    config: Annotated[Path, typer.Option(help="TrainConfig as JSON or YAML.")],
    data: Annotated[str, typer.Option(help="URI of the bucket output.")],
    out: Annotated[str, typer.Option(help="URI of the stage: checkpoints and report.")],
    parent: Annotated[str | None, typer.Option(help="URI of the checkpoint to start from.")] = None,
    tracking: Annotated[Path | None, typer.Option(help="TrackingConfig as JSON or YAML.")] = None,
) -> None:
    """Train one stage, or go on with one that was interrupted."""
    settings = configs.load(configs.TrainConfig, config)
    track = configs.load(configs.TrackingConfig, tracking) if tracking else configs.TrackingConfig()
    report = train(settings, track, data=data, parent=parent, out=out)
    typer.echo(report.model_dump_json(indent=1, exclude={"history"}))


if __name__ == "__main__":
    run_cli(main)
