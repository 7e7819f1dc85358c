"""`kinoflow studio`: the page where people draw from checkpoints, with the services it needs around it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from components.cli import LOG_FORMAT
from components.config import load
from components.errors import KinoflowError
from pipelines.config import RUN_CONFIG, RunConfig

if TYPE_CHECKING:
    from components.studio.choices import Choice, Start

logger = logging.getLogger(__name__)
SUMMARY = "summary.json"


def studio(
    checkpoint: Annotated[
        list[str] | None, typer.Option(help="Name of a run, address, or models:/NAME@ALIAS; offered first.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    host: Annotated[str, typer.Option(help="0.0.0.0 serves other machines too, without any password.")] = "127.0.0.1",
    out: Annotated[Path, typer.Option(help="Folder of what is made; uploads lie inside.")] = Path("runs/studio"),
    max_upload: Annotated[float, typer.Option(min=0.1, help="Largest upload in megabytes.")] = 64.0,
) -> None:
    """Open a page where videos are drawn, looked at and compared.

    It offers the finished runs and the versions in the model registry. Nothing leaves this machine.

    Examples:

    - `kinoflow studio`
    - `kinoflow studio --checkpoint mine --checkpoint models:/kinoflow@champion --port 8080`
    """
    from pipelines.local.services import Ports, home_folder, running_services

    try:
        from components.studio.app import StudioConfig, serve
    except ModuleNotFoundError as error:
        raise KinoflowError(f"{error.name} is not installed; run `make setup`, or install kinoflow[studio].") from error
    logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT, datefmt="%H:%M:%S")
    home = home_folder()
    named = list(checkpoint or [])
    config = StudioConfig(host=host, port=port, folder=out, max_upload_mb=max_upload)
    with running_services(home, Ports()):
        check_named(named, home.parent / "runs")
        serve(config, lambda: catalogue(named, home.parent / "runs"), lambda url: typer.echo(f"Kinoflow Studio  {url}"))


def catalogue(named: list[str], runs: Path) -> list[Choice]:
    """The checkpoints to offer: named ones, the registry's versions newest first, then the stages of finished runs."""
    of_runs = list(_of_runs(runs))
    starts = {choice.checkpoint: choice.start for choice in of_runs}
    versions = list(_of_registry(starts))
    last = {choice.label.split(" · ")[0]: choice for choice in of_runs}
    wanted = [last[given] if given in last else _named(given, starts) for given in named]
    offered = [*wanted, *versions, *sorted(of_runs, key=lambda choice: choice not in last.values())]
    return list({choice.label: choice for choice in offered}.values())


def check_named(named: list[str], runs: Path) -> None:
    """A run that does not exist is said before the page opens; the registry may need a while to answer."""
    for given in named:
        if "/" not in given and not (runs / given / SUMMARY).is_file():
            raise KinoflowError(f"There is no finished run {given!r} in {runs}; give a checkpoint's URI.")


def _of_runs(runs: Path) -> Iterator[Choice]:
    """Every stage of every finished run, the newest run first; runs that cannot be read are left out."""
    from components.studio.choices import Choice

    summaries = sorted(runs.glob(f"*/{SUMMARY}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in summaries:
        try:
            stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
            pairs = [(str(stage["name"]), str(stage["checkpoint"])) for stage in stages]
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning("%s cannot be read; its run is not offered", path)
            continue
        start = _start_of(path.parent / RUN_CONFIG)
        for stage, checkpoint in pairs:
            yield Choice(f"{path.parent.name} · {stage}", checkpoint, start)


def _of_registry(starts: Mapping[str, Start]) -> Iterator[Choice]:
    """Registered versions; none while the registry does not answer."""
    from components.registry import list_versions
    from components.studio.choices import Choice, Start

    try:
        versions = list_versions()
    except KinoflowError as error:
        logger.debug("no versions are offered: %s", error)
        return
    for version in versions:
        aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
        label = f"{version.name} {version.version}{aliases}"
        yield Choice(label, version.checkpoint, starts.get(version.checkpoint, Start()))


def _named(given: str, starts: Mapping[str, Start]) -> Choice:
    from components.studio.choices import Choice, Start

    return Choice(given, given, starts.get(given, Start()))


def _start_of(path: Path) -> Start:
    """What a run was evaluated with; the defaults where that cannot be read."""
    from components.studio.choices import Start

    try:
        evaluate = load(RunConfig, path).evaluate
    except (KinoflowError, OSError, ValidationError):
        return Start()
    sampling = evaluate.sampling
    return Start(
        num_frames=evaluate.num_frames, height=evaluate.height, width=evaluate.width,
        num_inference_steps=sampling.num_inference_steps, guidance_scale=sampling.guidance_scale,
        fps=sampling.fps, saved_fps=sampling.saved_fps,
    )  # fmt: skip
