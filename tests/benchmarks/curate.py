"""Curation over decoding: the whole stage on made videos, over the time PyAV needs to decode the same files."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from components import tables
from components.config import CaptionConfig, CurateConfig, IngestConfig
from components.curate import TABLE, CurateReport, curate
from components.curate.scores import analysis_size
from components.ingest import ingest
from components.shapes.generate import draw_shot, generate
from components.shapes.plan import ShapesConfig, plan_files
from components.video import UnreadableMedia, decode_frames, probe, write_video
from tests.benchmarks.measuring import Figure, Settings, by_turns

LARGE_SIZE = (720, 1280)


def run(settings: Settings) -> list[Figure]:
    """The demo's small videos and pictures, then larger videos of the same world."""
    with tempfile.TemporaryDirectory(prefix="kinoflow-bench-") as scratch:
        small, large = Path(scratch) / "small", Path(scratch) / "large"
        counts = {"num_videos": 4, "num_images": 2} if settings.toy else {"num_videos": 30, "num_images": 20}
        generate(small, ShapesConfig(**counts))
        make_large(large / "videos", (64, 96) if settings.toy else LARGE_SIZE, 1 if settings.toy else 3)
        height, width = LARGE_SIZE
        figures = measure(small, "demo files", settings)
        return figures + measure(large, f"{height} x {width} videos", settings)


def make_large(folder: Path, size: tuple[int, int], count: int) -> None:
    """The world's first videos without a planted defect, drawn at another size."""
    folder.mkdir(parents=True)
    whole = [file for file in plan_files(ShapesConfig()) if file.media == "video" and file.defect is None]
    for file in whole[:count]:
        frames = itertools.chain.from_iterable(draw_shot(shot, *size) for shot in file.shots)
        write_video(folder / Path(file.name).with_suffix(".mp4").name, frames, file.fps or 24.0)


def measure(data: Path, what: str, settings: Settings) -> list[Figure]:
    """Ratios for one folder of videos, with one process on either side, and with all cores."""
    objects, ingested, out = (str(data / name) for name in ("objects", "ingest", "curate"))
    ingest(IngestConfig(), str(data / "videos"), objects, ingested)
    one_process = CurateConfig(workers=1, captions=CaptionConfig(required=False))
    paths = sorted(path for path in Path(objects).rglob("*") if path.is_file())

    def stage(config: CurateConfig) -> CurateReport:
        shutil.rmtree(out, ignore_errors=True)
        return curate(config, ingested, objects, out)

    cases: dict[str, Callable[[], object]] = {
        "stage": lambda: stage(one_process),
        "decode": lambda: decode(paths),
        "decode small": lambda: decode(paths, one_process.analysis_long_side_px),
    }
    if not settings.cpu_time:  # more cores save no processor time
        cases["all cores"] = lambda: stage(one_process.model_copy(update={"workers": None}))
    timings = by_turns(cases, settings, f"curate, {what}")
    frames = stage(one_process).decoded_frames
    clips = tables.read(Path(out) / TABLE, tables.CLIPS)
    size = f"{what} ({len(paths)} files, {len(clips)} rows)"
    figures = [
        timings.rate("stage", frames, f"{size}: whole stage, one process", "frames/s"),
        timings.time_ratio("stage", "decode", f"{size}: time of the stage over decoding to full-size RGB"),
        timings.time_ratio("stage", "decode small", f"{size}: time of the stage over decoding to its analysis size"),
    ]
    if "all cores" in cases:
        figures.append(timings.speed_ratio("all cores", "stage", f"{size}: all cores over one process"))
    return figures


def decode(paths: list[Path], long_side_px: int | None = None) -> None:
    """Decode every frame of every file; a damaged one as far as it goes."""
    for path in paths:
        with suppress(UnreadableMedia):
            size = None
            if long_side_px is not None:
                info = probe(path)
                size = analysis_size(info.height, info.width, long_side_px)
            for _ in decode_frames(path, size):
                pass
