"""`kinoflow vbench`: videos for VBench and VBench-I2V, and their results back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="URI of a checkpoint, or models:/NAME@ALIAS.")],
    suite: Annotated[Path, typer.Argument(help="VBench_full_info.json or vbench2_i2v_full_info.json.")],
    out: Annotated[Path, typer.Option(help="Folder; the videos lie in videos/ below it.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the first frames, for VBench-I2V.")] = None,
    dimension: Annotated[list[str] | None, typer.Option(help="Only its prompts; may be repeated.")] = None,
    num_frames: Annotated[int, typer.Option(min=1)] = 16,
    size: Annotated[str, typer.Option(help="240p 16:9, or 240x424, height first.")] = "240x424",
    seed: Annotated[int, typer.Option(min=0)] = 42,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 100,
    guidance_scale: Annotated[float, typer.Option(min=0)] = 7.0,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
) -> None:
    """Make what is missing of a suite's videos, named `<prompt>-<index>.mp4`.

    Example: `kinoflow vbench export models:/kinoflow@candidate VBench_full_info.json --out vbench`
    """
    from components import progress
    from components.config import parse
    from components.evaluate.vbench import export as export_suite
    from components.evaluate.vbench import plan_export, read_suite
    from components.generation import load_bundle
    from components.generation.settings import GenerationConfig
    from components.registry import resolve

    prompts = read_suite(suite, dimension or ())
    sampling = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    told = {"size": size, "num_frames": num_frames, "seed": seed, "sampling": sampling}
    config = parse(GenerationConfig, told, "kinoflow vbench export")
    missing = sum(not video.path.exists() for video in plan_export(prompts, out, seed))
    bundle = load_bundle(resolve(checkpoint))
    with progress.task("vbench", missing) as bar:
        folder = export_suite(
            bundle, prompts, out, config, images=images, batch_size=batch_size, on_batch=bar.advance
        )  # fmt: skip
    typer.echo(f"{folder}: {missing} videos made; give it to VBench as --videos_path.")


@app.command(name="import")
def import_(
    results: Annotated[list[Path], typer.Argument(help="VBench's *_eval_results.json.")],
    evaluation: Annotated[str, typer.Option(help="URI of what `evaluate` published.")],
    out: Annotated[str, typer.Option(help="URI to publish the extended metrics.json at.")],
    run: Annotated[str, typer.Option(help="Name of the run in MLflow.")] = "run",
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "kinoflow",
) -> None:
    """Publish an evaluation's metrics.json with VBench's scores, and send them to its run in MLflow.

    Example: `kinoflow vbench import results_eval_results.json --evaluation s3://…/evaluate --out s3://…/vbench`
    """
    from components.config import TrackingConfig
    from components.evaluate.vbench_results import import_results

    scores = import_results(
        results, TrackingConfig(experiment=experiment, run_name=run), evaluation=evaluation, out=out
    )  # fmt: skip
    for name, score in scores.items():
        typer.echo(f"{name}: {score.mean:.4f} ({score.low:.4f} to {score.high:.4f}, n {score.n})")
