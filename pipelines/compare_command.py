"""The command `kinoflow compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import KinoflowError
from pipelines.terminal import BUCKET

if TYPE_CHECKING:
    from components.comparison import Contestant
    from components.comparison_config import GridConfig

MLFLOW_FOLDER = "comparisons"


def compare(
    given: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs, URIs of checkpoints, or models:/kinoflow@champion.")
    ],
    prompt: Annotated[list[str] | None, typer.Option(help="Draw these instead of the first run's own.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of the noise; 0 when absent.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML or JSON: prompts, seeds, tasks, size.")] = None,
    base: Annotated[str, typer.Option(help="URI below which runs and comparisons are stored.")] = BUCKET,
    out: Annotated[Path, typer.Option(help="Folder for a copy of the page.")] = Path("runs/compared"),
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "kinoflow",
) -> None:
    """Show what differs between runs: the same prompts at every checkpoint, settings, scores, curves.

    What was drawn from a checkpoint before is not drawn again.

    Examples:

    - `kinoflow compare demo slower`
    - `kinoflow compare demo models:/kinoflow@champion --prompt "a red circle moves left on a white background"`
    """
    from pipelines.local.services import home_folder, running_services

    home = home_folder()
    with running_services(home, wait_for_tracking=True):
        from components import store
        from components.comparison import compare as compare_checkpoints
        from components.comparison import read_contestant
        from components.config import TrackingConfig
        from components.tracking import open_tracker

        store.ensure_bucket(base)
        contestants = [read_contestant(*_named(each, home, base)) for each in given]
        grid = _grid(contestants, prompt, seed, config)
        name = " and ".join(each.name for each in contestants).replace("'", "")
        folder = "-and-".join(each.folder for each in contestants)
        tracking = TrackingConfig(experiment=experiment, run_name=f"compare {name}")
        with open_tracker(tracking, task="compare", params={"grid": grid.model_dump(mode="json")}) as tracker:
            made = compare_checkpoints(contestants, grid, store.join(base, MLFLOW_FOLDER, folder), tracker=tracker)
        copy = out / f"{folder}.html"
        store.download(made.page, copy)
    typer.echo(f"{made.drawn} of {made.cells} videos drawn, the others were there", err=True)
    typer.echo(f"published {made.page}", err=True)
    typer.echo(str(copy))


def _named(given: str, home: Path, base: str) -> tuple[str, str]:
    """A name for people, and the URI of the last checkpoint that is meant."""
    from components import store
    from components.registry import find_version, is_model

    if is_model(given):
        version = find_version(given)
        return f"{version.name} version {version.version}", version.checkpoint
    if "/" in given:
        return "-".join(given.rstrip("/").split("/")[-3:]), given
    summary = home.parent / "runs" / given / "summary.json"
    if summary.is_file():
        return given, str(json.loads(summary.read_text(encoding="utf-8"))["stages"][-1]["checkpoint"])
    return given, _evaluated(given, store.join(base, "runs", given))


def _evaluated(name: str, root: str) -> str:
    """The checkpoint that a run's evaluation names; for runs of another machine."""
    from components import manifest, store

    try:
        return manifest.load(store.join(root, "evaluate")).annotations["checkpoint"]
    except (manifest.ManifestError, KeyError) as error:
        raise KinoflowError(f"There is no evaluated run {name!r} in runs/ or below {root}; give its name or a "
                            "checkpoint's URI.") from error  # fmt: skip


def _grid(
    contestants: list[Contestant], prompts: list[str] | None, seeds: list[int] | None, path: Path | None
) -> GridConfig:
    """What a person asks for; else what the first of the contestants has drawn of itself."""
    from components.comparison.grid import kept_grid
    from components.comparison_config import GridConfig
    from components.config import load

    if path is not None:
        grid = load(GridConfig, path)
    else:
        kept = next(filter(None, (kept_grid(each.stages[-1].checkpoint) for each in contestants)), None)
        if kept is None and not prompts:
            raise KinoflowError("None of them has drawn a grid yet; say what to draw with --prompt or --config.")
        grid = kept or GridConfig(prompts=tuple(prompts or ()), **contestants[0].sampled_as)
    changes = {"prompts": tuple(prompts or ()), "seeds": tuple(seeds or ())}
    wanted = {**grid.model_dump(), **{key: value for key, value in changes.items() if value}}
    return GridConfig.model_validate(wanted)
