"""`python -m components.evaluate`: evaluate one checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from components import config as configs
from components.cli import run_cli
from components.evaluate import evaluate


def main(
    config: Annotated[Path, typer.Option(help="EvaluateConfig as JSON or YAML.")],
    checkpoint: Annotated[str, typer.Option(help="URI of the checkpoint.")],
    data: Annotated[str, typer.Option(help="URI of the bucket output.")],
    clips: Annotated[str, typer.Option(help="URI of the curate output.")],
    objects: Annotated[str, typer.Option(help="URI of the source objects.")],
    out: Annotated[str, typer.Option(help="URI to publish the evaluation at.")],
    tracking: Annotated[Path | None, typer.Option(help="TrackingConfig as JSON or YAML.")] = None,
) -> None:
    """Measure held-out loss, generate samples and write a report."""
    settings = configs.load(configs.EvaluateConfig, config)
    track = configs.load(configs.TrackingConfig, tracking) if tracking else configs.TrackingConfig()
    report = evaluate(settings, track, checkpoint=checkpoint, data=data, clips=clips, objects=objects, out=out)
    typer.echo(report.model_dump_json(indent=1))


if __name__ == "__main__":
    run_cli(main)
