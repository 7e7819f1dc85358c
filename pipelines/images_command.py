"""The command `kinoflow images`: what an air-gapped registry must hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from components.errors import KinoflowError

CHARTS = ("platform", "workspace", "gpu-nodes")


def images(
    values: Annotated[list[str] | None, typer.Option(help="CHART=FILE: values a chart is installed with.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="A chart that is not installed.")] = None,
    charts: Annotated[Path, typer.Option(help="Folder of the charts.")] = Path("charts"),
    pipeline: Annotated[Path | None, typer.Option(help="Compiled graph, its images too.")] = None,
    to: Annotated[str, typer.Option(help="Print the commands that copy all images to this registry.")] = "",
    why: Annotated[bool, typer.Option("--why", help="Name what starts each image.")] = False,
) -> None:
    """Print every image that the charts and the pipeline start, read from what they render to.

    Examples:

    - `kinoflow images --values platform=mine.yaml --pipeline build/text_to_video.yaml`
    - `kinoflow images --pipeline build/text_to_video.yaml --to registry.local/video | sh`
    """
    from pipelines.needed_images import by_image, of_chart, of_pipeline

    given = dict(_pair(text) for text in values or [])
    if unknown := sorted({*given, *(without or [])} - set(CHARTS)):
        raise KinoflowError(f"There is no chart {unknown[0]!r}; the charts are {', '.join(CHARTS)}.")
    found = [one for name in CHARTS if name not in (without or []) for one in of_chart(charts / name, given.get(name))]
    if pipeline is not None:
        found += of_pipeline(pipeline)
    for name, users in by_image(found).items():
        if to:
            source = re.sub(r":[^:/@]+@", "@", name)  # skopeo takes a tag or a digest
            typer.echo(f"skopeo copy --all --preserve-digests docker://{source} docker://{_moved(source, to)}")
        else:
            typer.echo(f"{name}  {', '.join(users)}" if why else name)


def _pair(text: str) -> tuple[str, Path]:
    chart, equals, path = text.partition("=")
    if not equals:
        raise KinoflowError(f"--values {text}: write CHART=FILE, for example platform=mine.yaml.")
    return chart, Path(path)


def _moved(name: str, registry: str) -> str:
    """The same image below another registry: its host is replaced, its path, tag or digest kept."""
    host, slash, path = name.partition("/")
    path = path if slash and ("." in host or ":" in host or host == "localhost") else name
    # Copied whole, an image keeps its digest: it is pushed under no tag and pulled by that digest.
    return f"{registry.rstrip('/')}/{path}"
