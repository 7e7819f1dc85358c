"""The commands `kinoflow pack` and `kinoflow digest`: datasets as files for anybody, and what tells them apart."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from components.errors import KinoflowError


def pack(
    clips: Annotated[str, typer.Argument(help="Name of a run, or URI prefix that curation published.")],
    out: Annotated[str, typer.Option(help="URI prefix of the shards.")],
    objects: Annotated[str | None, typer.Option(help="URI prefix of the source files; found when absent.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file with everything that can be set.")] = None,
    fps: Annotated[float | None, typer.Option(help="Largest frame rate; as it is when absent.")] = None,
    short_side: Annotated[int | None, typer.Option(help="Largest shorter side in pixels; any when absent.")] = None,
    shard_mib: Annotated[int | None, typer.Option(help="A shard is closed once it is this large.", min=1)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; all cores when absent.", min=1)] = None,
) -> None:
    """Cut the kept clips into tar shards for `webdataset` and for reading at random.

    The same clips give the same bytes. Killed, the same command goes on after the last whole shard.

    Examples:

    - `kinoflow pack demo --out packed`
    - `kinoflow pack work/curate --out packed --short-side 720 --fps 30`
    """
    from components import config as configs
    from components import store
    from components.pack_config import PackConfig
    from pipelines.local.services import Ports, home_folder, running_services

    given = {
        "fps": fps, "short_side_px": short_side, "workers": workers,
        "shard_size_bytes": shard_mib << 20 if shard_mib else None,
    }  # fmt: skip
    read = configs.load(PackConfig, config) if config else PackConfig()
    chosen = {**read.model_dump(), **{name: value for name, value in given.items() if value is not None}}
    settings = configs.parse(PackConfig, chosen, "pack")
    home = home_folder()
    table, found = _of_run(clips, home) if "/" not in clips else (clips, None)
    in_store = any(map(store.is_s3, filter(None, (table, objects or found, out))))
    with running_services(home, Ports(), only_store=True) if in_store else nullcontext():
        from components.pack import pack as pack_clips

        store.ensure_bucket(out)
        report = pack_clips(settings, table, objects or found or _objects_near(table), out)
    typer.echo(
        f"{out}: {report.packed} of {report.clips} clips in {report.shards} shards, {report.size_bytes / 1e6:.1f} MB "
        f"({report.copied} copied, {report.encoded} encoded, {report.pictures} pictures, {report.failed} failed)"
    )
    typer.echo(f"dataset {report.dataset_digest}")


def digest(
    output: Annotated[str, typer.Argument(help="URI prefix of clips, plans, shards, or of a checkpoint.")],
    out: Annotated[Path | None, typer.Option(help="Write it as JSON instead, with the counts of the output.")] = None,
) -> None:
    """Print the digest of the dataset that an output is or was made from: the same in DVC, Kubeflow and MLflow.

    Example: `kinoflow digest work/stage3/step-00002800`
    """
    from components import manifest

    found = manifest.load(output)
    if out is None:
        typer.echo(found.dataset_digest)
        return
    counts = {name: value for name, value in found.facts.items() if isinstance(value, int) and name.endswith("clips")}
    text = json.dumps({"dataset_digest": found.dataset_digest, **counts}, indent=1)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f"{text}\n", encoding="utf-8")


def _of_run(name: str, home: Path) -> tuple[str, str]:
    """Clips and objects of a run that was started here."""
    path = home.parent / "runs" / name / "arguments.json"
    if not path.is_file():
        raise KinoflowError(f"There is no run {name!r} in {path.parent.parent}; give the URI prefix of its clips.")
    arguments = json.loads(path.read_text(encoding="utf-8"))
    return f"{arguments['root']}/curate", str(arguments["objects"])


def _objects_near(clips: str) -> str:
    """Where DVC's stages and runs keep the sources of a clips table: beside it, or beside all runs."""
    from components import store

    root = clips.rstrip("/").rpartition("/")[0]
    for place in (root, root.rpartition("/")[0].rpartition("/")[0]):
        if place and store.list_objects(store.join(place, "objects")):
            return store.join(place, "objects")
    raise KinoflowError(f"The source files of {clips} are not beside it; name their prefix with --objects.")
