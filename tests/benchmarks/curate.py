"""Curation over decoding: the whole stage on made videos, over the time PyAV needs to decode the same files."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import av
from av.video.reformatter import VideoReformatter
from scenedetect import AdaptiveDetector, VideoOpenFailure, detect

from components import layout, tables
from components.config import CaptionConfig, CurateConfig, IngestConfig
from components.curate import TABLE, CurateReport, curate
from components.curate.scores import SCORERS, EveryFrame, Look, Scorer, Sizes, sizes_of
from components.ingest import ingest
from components.pictures import StillPicture
from components.shapes.generate import draw_shot, generate
from components.shapes.plan import ShapesConfig, plan_files
from components.stacks import stack_of
from components.video import UnreadableMedia, decode_frames, write_video
from tests.benchmarks.measuring import Figure, Settings, by_turns

LARGE_SIZE = (720, 1280)


def run(settings: Settings) -> list[Figure]:
    """The demo's small videos and pictures, then larger videos of the same world; or the folder CURATE_VIDEOS."""
    with tempfile.TemporaryDirectory(prefix="kinoflow-bench-") as scratch:
        folder = os.environ.get("CURATE_VIDEOS")
        if folder:
            shutil.copytree(folder, Path(scratch) / "own" / "videos")
            return measure(Path(scratch) / "own", folder, settings)
        small, large = Path(scratch) / "small", Path(scratch) / "large"
        counts = {"num_videos": 4, "num_images": 2} if settings.toy else {"num_videos": 110, "num_images": 80}
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
    """Ratios for one folder with `videos`, with one process and one thread on either side, and with all cores."""
    objects, ingested, out = (str(data / name) for name in ("objects", "ingest", "curate"))
    ingest(IngestConfig(), str(data / "videos"), objects, ingested)
    one_process = CurateConfig(workers=1, captions=CaptionConfig(required=False))
    paths = sorted(path for path in Path(objects).rglob("*") if path.is_file())

    def stage(config: CurateConfig) -> CurateReport:
        for made in (out, layout.beside(objects, layout.ANALYSED)):  # measures that are kept would not be made again
            shutil.rmtree(made, ignore_errors=True)
        return curate(config, ingested, objects, out)

    frames = stage(one_process).decoded_frames
    clips = tables.read(Path(out) / TABLE, tables.CLIPS)
    cases: dict[str, Callable[[], object]] = {
        "stage": lambda: stage(one_process),
        "decode": lambda: decode(paths),
        "decode to RGB": lambda: decode_to_rgb(paths),
        "multipass": lambda: multipass(paths),
    }
    if not settings.cpu_time:  # more cores save no processor time
        cases["all cores"] = lambda: stage(one_process.model_copy(update={"workers": None}))
    timings = by_turns(cases, settings, f"curate, {what}")
    size = f"{what} ({len(paths)} files, {len(clips)} rows, {frames} frames)"
    figures = [
        timings.time_ratio("stage", "decode to RGB", f"curate.decode_ratio, {size}: stage over decoding to RGB arrays"),
        timings.time_ratio("stage", "decode", f"curate.decode_ratio_bare, {what}: stage over decoding alone"),
        timings.speed_ratio("stage", "multipass", f"curate.speedup_vs_multipass, {what}: one pass over one a tool"),
        timings.rate("stage", len(clips), f"curate.clips_per_second_per_core, {what}", "clips/s"),
        timings.rate("stage", frames, f"curate.frames_per_second_per_core, {what}", "frames/s"),
    ]
    if "all cores" in cases:
        figures.append(timings.speed_ratio("all cores", "stage", f"{what}: all cores over one process"))
    return figures


def decode(paths: list[Path]) -> None:
    """Decode every frame of every file with one thread, and look at none; a damaged one as far as it goes."""
    for path in paths:
        with suppress(av.FFmpegError), av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for _ in container.decode(stream):
                pass


def decode_to_rgb(paths: list[Path]) -> None:
    """The same, with every frame as an array (H, W, 3), which is what a tool that looks at frames begins with."""
    for path in paths:
        with suppress(av.FFmpegError), av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            reformatter = VideoReformatter()
            for frame in container.decode(stream):
                reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()


def multipass(paths: list[Path]) -> None:
    """One tool after the other, each decoding for itself: PySceneDetect for the shots, then every score."""
    for path in paths:
        with suppress(OSError, VideoOpenFailure):
            detect(str(path), AdaptiveDetector())
    for scorer in SCORERS:
        for path in paths:
            with suppress(UnreadableMedia):
                score(path, scorer())


def score(path: Path, scorer: Scorer) -> None:
    """One score of one file, as if it were one clip."""
    sizes: Sizes | None = None
    look: Look | None = None
    for number, frame in enumerate(decode_frames(path)):
        sizes = sizes or sizes_of(*frame.shape[:2], CurateConfig().analysis_long_side_px)
        stack = stack_of([StillPicture(frame)], sizes.detection, number)
        look = Look(number, stack.pictures[0], sizes, stack.bgr[0])
        if isinstance(scorer, EveryFrame):
            scorer.add_stack(stack)
        elif scorer.wants(number):
            scorer.add(look, number)
    if look is not None:
        scorer.summary(0, look.number + 1, look)
