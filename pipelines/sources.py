"""Which videos a run reads: those a person named, or the demo's own, made on the spot."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import yaml

from components import store
from components.errors import KinoflowError
from pipelines.config import DemoData, RunConfig


def resolve_source(config: RunConfig, videos: str | None, project: Path) -> str:
    """The source to ingest, as an absolute path or an address; demo data are made when none is named.

    Raises:
        KinoflowError: there is nothing at `videos`, or the preset brings no data of its own.
    """
    if videos:
        return _checked(videos)
    if config.demo_data is None:
        raise KinoflowError(f"The preset {config.preset} brings no videos; name some with --videos.")
    folder = project / config.demo_data.folder
    make_demo_data(config.demo_data, folder)
    return str(folder / "videos")


def _checked(videos: str) -> str:
    if store.is_s3(videos):
        return videos  # looked at once the store is known
    from components.ingest.downloads import is_url
    from components.ingest.sources import list_source

    if is_url(videos):
        return videos
    path = Path(videos).expanduser()
    list_source(str(path))
    return str(path.resolve())


def make_demo_data(demo: DemoData, folder: Path) -> bool:
    """Write the demo's videos, captions, truth and prompts below `folder`; False when they are already there."""
    from components.shapes.generate import generate
    from components.shapes.plan import ShapesConfig

    wanted = ShapesConfig(seed=demo.seed, num_videos=demo.num_videos, num_images=demo.num_images)
    with suppress(OSError, ValueError, KeyError):
        made = json.loads((folder / "truth.json").read_text(encoding="utf-8"))["config"]
        if ShapesConfig.model_validate(made) == wanted and (folder / "videos").is_dir():
            return False
    generate(folder, wanted)
    return True


def source_version(source: str) -> str:
    """The version that DVC gives the nearest folder above a local source; empty when DVC does not track it.

    It is the digest in the `.dvc` file: what `dvc status` says has changed since is another version.
    """
    if "://" in source:
        return ""
    for folder in (Path(source), *Path(source).parents):
        tracked = folder.parent / f"{folder.name}.dvc"
        if tracked.is_file():
            outs = yaml.safe_load(tracked.read_text(encoding="utf-8")).get("outs", [])
            return str(outs[0].get("md5", "")) if outs else ""
    return ""
