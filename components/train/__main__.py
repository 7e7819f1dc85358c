"""`python -m components.train`: run one training stage."""

import os
from typing import Annotated

import typer

from components import config as configs
from components.cli import run_cli
from components.train import train
from components.train.launch import end_with_the_launcher, num_processes


def main(
    config: Annotated[str, typer.Option(help="TrainConfig: a JSON or YAML file, or the JSON itself.")],
    data: Annotated[str, typer.Option(help="URI of the bucket output.")],
    out: Annotated[str, typer.Option(help="URI of the stage: checkpoints and report.")],
    parent: Annotated[str | None, typer.Option(help="URI of the checkpoint to start from.")] = None,
    tracking: Annotated[str | None, typer.Option(help="TrackingConfig: a file, or the JSON itself.")] = None,
) -> None:
    """Train one stage, or go on with one that was interrupted."""
    end_with_the_launcher()
    settings = configs.load_or_parse(configs.TrainConfig, config, "--config")
    track = (
        configs.load_or_parse(configs.TrackingConfig, tracking, "--tracking") if tracking else configs.TrackingConfig()
    )
    report = train(settings, track, data=data, parent=parent, out=out)
    if os.environ.get("RANK", "0") == "0" and not num_processes(settings):  # the first rank has told already
        typer.echo(report.model_dump_json(indent=1, exclude={"history"}))


if __name__ == "__main__":
    run_cli(main)
