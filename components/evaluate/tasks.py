"""Which samples an evaluation generates: text to image, text to video, image to video."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components import manifest, store, tables, video
from components.config import EvaluateConfig
from components.errors import KinoflowError
from components.evaluate import truth
from components.evaluate.pictures import Sample
from components.generation import IMAGE_TO_VIDEO, Request
from components.shapes.measure import score
from components.takedown import TakenDown

TEXT_TO_IMAGE, TEXT_TO_VIDEO, IMAGE_VIDEO = "text-to-image", "text-to-video", "image-to-video"


@dataclass(frozen=True)
class Job:
    """The requests of one task, all of one length."""

    task: str
    num_frames: int
    requests: tuple[Request, ...]

    def sample(self, index: int, frames: NDArray[np.uint8], *, judged: bool) -> Sample:
        """The finished sample of request `index`, judged against its prompt when asked."""
        request = self.requests[index]
        return Sample(
            task=self.task,
            prompt=request.prompt,
            frames=frames,
            seed=request.seed,
            reference=request.references[0][0] if request.references else None,
            verdict=score(frames, request.prompt) if judged else None,
        )


def plan_jobs(
    config: EvaluateConfig, *, clips: str, objects: str, scratch: Path, taken: TakenDown | None = None
) -> list[Job]:
    """Prompts, seeds and references of every task; nothing for a task with a count of zero.

    With `config.measure_shapes` prompts come from the made world's grammar and first frames are drawn fresh; without,
    prompts are the configured ones or held-out captions, and first frames those of held-out clips.

    Args:
        config: what to generate.
        clips: URI of the curate output.
        objects: URI of the source videos.
        scratch: for local copies.
        taken: clips whose captions and frames are not used.
    """
    if config.measure_shapes:
        prompts, references = _made_world(config)
    else:
        prompts, references = _held_out_world(config, clips, objects, scratch, taken or TakenDown())
    counts = {
        TEXT_TO_IMAGE: (config.num_text_to_image, 1),
        TEXT_TO_VIDEO: (config.num_text_to_video, config.num_frames),
        IMAGE_VIDEO: (config.num_image_to_video, config.num_frames),
    }
    jobs = []
    for place, (task, (count, num_frames)) in enumerate(counts.items()):
        if task == IMAGE_VIDEO:
            count = min(count, len(references))
        requests = tuple(
            Request(
                prompt=prompts[task][index % len(prompts[task])],
                seed=config.seed * 1_000_003 + place * 100_003 + index,
                references=(references[index][None],) if task == IMAGE_VIDEO else (),
                mask_strategy=IMAGE_TO_VIDEO if task == IMAGE_VIDEO else None,
            )
            for index in range(count)
        )
        if requests:
            jobs.append(Job(task, num_frames, requests))
    return jobs


Prompts = dict[str, list[str]]
FirstFrames = Sequence[NDArray[np.uint8]]


def _made_world(config: EvaluateConfig) -> tuple[Prompts, FirstFrames]:
    stills = truth.draw_scenes(config.num_text_to_image, config.seed, moving=False)
    moving = truth.draw_scenes(config.num_text_to_video, config.seed, moving=True)
    started = truth.draw_scenes(config.num_image_to_video, config.seed + 1, moving=True)
    prompts = {
        TEXT_TO_IMAGE: [scene.caption for scene in stills],
        TEXT_TO_VIDEO: [scene.caption for scene in moving],
        IMAGE_VIDEO: [scene.caption for scene in started],
    }
    if not started:
        return prompts, []
    return prompts, list(truth.first_frames(started, config.seed, config.num_frames, config.height, config.width))


def _held_out_world(
    config: EvaluateConfig, clips: str, objects: str, scratch: Path, taken: TakenDown
) -> tuple[Prompts, FirstFrames]:
    manifest.fetch(clips, scratch / "clips", ["clips.parquet"])
    table = tables.read(scratch / "clips" / "clips.parquet", tables.CLIPS)
    kept = table.filter((pl.col("outcome") == "kept") & ~pl.col("clip_id").is_in(list(taken.ids))).sort("clip_id")
    held_out = kept.filter(pl.col("split") == "eval")
    chosen = held_out if held_out.height else kept
    captioned = chosen.filter(pl.col("caption").is_not_null())
    texts = list(config.prompts) or list(dict.fromkeys(captioned["caption"].to_list()))
    if not texts:
        raise KinoflowError("There is nothing to generate: no prompts are configured and no clip has a caption.")
    random.Random(config.seed).shuffle(texts)
    rows = captioned.head(config.num_image_to_video).to_dicts()
    references = [_first_frame_of(row, objects, scratch, config) for row in rows]
    started = [str(row["caption"]) for row in rows]
    return {TEXT_TO_IMAGE: texts, TEXT_TO_VIDEO: texts, IMAGE_VIDEO: started}, references


def _first_frame_of(row: dict[str, object], objects: str, scratch: Path, config: EvaluateConfig) -> NDArray[np.uint8]:
    key = store.safe_key(str(row["object_key"]))
    path = scratch / "objects" / key
    if not path.exists():
        store.download(store.join(objects, key), path)
    start = row["start_frame"]
    frames = video.read_frames(path, [start if isinstance(start, int) else 0])
    fitted: NDArray[np.uint8] = video.resize_crop(
        frames, config.height, config.width, is_image=row["media"] == "image"
    )[0]
    return fitted
