"""Which samples an evaluation generates: so many of every task, with what each is given."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from components.config import EvaluateConfig
from components.errors import KinoflowError
from components.evaluate import truth
from components.evaluate.references import Clip, HeldOut, made_clips
from components.generation import Request
from components.generation.settings import TaskName
from components.generation.tasks import arrange
from components.media import Frames
from model.masks import parse_mask_strategy

SEEDS_PER_TASK = 100_003
SEEDS_PER_EVALUATION = 1_000_003


@dataclass(frozen=True)
class Case:
    """One sample to generate, and what it will be measured against.

    Attributes:
        request: prompt, seed, references and where they go.
        given: pictures (H, W, 3) by the number of the frame they are given as.
        truth: the clip (T, H, W, 3) that every second frame was given of; only to interpolate.
    """

    request: Request
    given: Mapping[int, Frames] = field(default_factory=dict, repr=False)
    truth: Frames | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Job:
    """The cases of one task, all of one length."""

    task: TaskName
    num_frames: int
    cases: tuple[Case, ...]


class Material(Protocol):
    """Where prompts and references come from."""

    def prompts(self, task: TaskName, count: int) -> list[str]:
        """So many prompts."""

    def stills(self, count: int) -> list[Clip]:
        """At most so many first frames with their captions."""

    def clips(self, task: TaskName, count: int) -> list[Clip]:
        """At most so many clips of `config.num_frames`, which can be extended where the task is to."""


class MadeWorld:
    """Prompts of the made world's grammar; pictures and clips drawn fresh, that no training has seen."""

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config

    def prompts(self, task: TaskName, count: int) -> list[str]:
        """See `Material`."""
        scenes = truth.draw_scenes(count, self._config.seed, moving=task != "text_to_image")
        return [scene.caption for scene in scenes]

    def stills(self, count: int) -> list[Clip]:
        """See `Material`."""
        config = self._config
        scenes = truth.draw_scenes(count, config.seed + 1, moving=True)
        drawn = truth.first_frames(scenes, config.seed, config.num_frames, config.height, config.width)
        return [Clip(scene.caption, frame[None]) for scene, frame in zip(scenes, drawn, strict=True)]

    def clips(self, task: TaskName, count: int) -> list[Clip]:
        """See `Material`."""
        config, seed = self._config, self._config.seed + 2 + _PLACES.index(task)
        room = config.num_frames - config.given_frames
        # a shape crosses the picture once: what goes on in a shot of the usual length is a clip of few frames
        shown = 2 * config.given_frames if task in ("extend_forward", "extend_backward") else config.num_frames
        return made_clips(
            truth.draw_scenes(count, seed, moving=True), seed, min(shown, config.num_frames), config,
            before=room if task == "extend_backward" else 0, after=room if task == "extend_forward" else 0,
        )  # fmt: skip


class HeldOutWorld:
    """Configured prompts or held-out captions; first frames and clips of held-out sources."""

    def __init__(self, config: EvaluateConfig, held_out: HeldOut) -> None:
        self._config, self._held_out = config, held_out

    def prompts(self, task: TaskName, count: int) -> list[str]:
        """See `Material`; they begin anew when there are fewer.

        Raises:
            KinoflowError: there are none.
        """
        texts = list(self._config.prompts) or self._held_out.captions
        if not texts:
            raise KinoflowError("There is nothing to generate: no prompts are configured and no clip has a caption.")
        random.Random(self._config.seed).shuffle(texts)
        return [texts[index % len(texts)] for index in range(count)]

    def stills(self, count: int) -> list[Clip]:
        """See `Material`."""
        return self._held_out.first_frames(count)

    def clips(self, task: TaskName, count: int) -> list[Clip]:
        """See `Material`; what lies before or after a clip is not looked at, so it need not be there."""
        return self._held_out.clips(count, self._config.num_frames)


def plan_jobs(config: EvaluateConfig, held_out: Callable[[], HeldOut]) -> list[Job]:
    """The cases of every task; nothing for a task with a count of zero or without a clip that is long enough.

    With `config.measure_shapes` prompts and references come from the made world, without from held-out clips; frames
    to interpolate between always come from held-out clips.

    Args:
        config: what to generate.
        held_out: opens the held-out clips; called when they are needed.
    """
    material: Material = MadeWorld(config) if config.measure_shapes else HeldOutWorld(config, held_out())
    jobs = []
    for place, task in enumerate(_PLACES):
        count = getattr(config, f"num_{task}")
        if count == 0 or (config.num_frames == 1 and task not in ("text_to_image", "text_to_video")):
            continue
        source = HeldOutWorld(config, held_out()) if task == "interpolate" else material
        first_seed = config.seed * SEEDS_PER_EVALUATION + place * SEEDS_PER_TASK
        cases = tuple(_cases(task, config, source, count, first_seed))
        if cases:
            jobs.append(Job(task, 1 if task == "text_to_image" else config.num_frames, cases))
    return jobs


_PLACES: tuple[TaskName, ...] = (
    "text_to_image", "text_to_video", "image_to_video", "loop", "extend_forward", "extend_backward", "connect",
    "interpolate",
)  # fmt: skip
"""In the order of the report; the place decides the seeds."""


def _cases(task: TaskName, config: EvaluateConfig, material: Material, count: int, first_seed: int) -> list[Case]:
    if task in ("text_to_image", "text_to_video"):
        prompts = material.prompts(task, count)
        return [Case(Request(prompt, first_seed + index)) for index, prompt in enumerate(prompts)]
    clips = material.stills(count) if task == "image_to_video" else material.clips(task, count)
    return [_conditioned(task, config, clip, first_seed + index) for index, clip in enumerate(clips)]


def _conditioned(task: TaskName, config: EvaluateConfig, clip: Clip, seed: int) -> Case:
    references, strategy = arrange(
        task, _taken(task, clip.frames), config.num_frames, condition_frame_length=config.given_frames
    )
    request = Request(clip.caption, seed, references=references, mask_strategy=strategy)
    return Case(request, given_frames(request, config.num_frames), clip.frames if task == "interpolate" else None)


def _taken(task: TaskName, frames: Frames) -> list[Frames]:
    """The references that a task takes of a clip."""
    middle = len(frames) // 2
    if task == "loop":
        return [frames[middle : middle + 1]]
    if task == "connect":
        return [frames[:1], frames[-1:]]
    return [frames[::2]] if task == "interpolate" else [frames]


def given_frames(request: Request, num_frames: int) -> dict[int, Frames]:
    """The pictures that a request's strategy writes into its clip, by the number of the frame."""
    given: dict[int, Frames] = {}
    for group in parse_mask_strategy(request.mask_strategy):
        reference = request.references[group.reference_index]
        for offset in range(group.length):
            target = (group.target_start + offset) % num_frames
            given[target] = reference[(group.reference_start + offset) % len(reference)]
    return given
