"""From what the fields of the page hold to an order that can be drawn, or to a sentence about the first mistake."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from components import video
from components.config import SamplingConfig
from components.errors import KinoflowError
from components.generation.prompts import parse_prompt
from components.generation.settings import GenerationConfig, TaskName
from components.studio.choices import OWN_SIZE, Choice, Start, name_of, size_of
from components.studio.uploads import Upload
from model.diffusion_config import SamplingMethod

MAX_SEED = 2**31 - 1
MAX_REFERENCE_FRAMES = 512
"""Of an uploaded video; longer ones are refused before they fill the memory."""

Kind = Literal["mp4", "gif", "png"]


@dataclass(frozen=True)
class Slot:
    """A place for an upload."""

    key: str
    label: str


@dataclass(frozen=True)
class Task:
    """What can be asked for, in the words of the page."""

    label: str
    hint: str
    slots: tuple[Slot, ...] = ()


FIRST, LAST = Slot("first", "First frame"), Slot("last", "Last frame")
VIDEO = Slot("video", "Video")
TASKS: dict[TaskName, Task] = {
    "text_to_video": Task("Text to video", "Only the prompt decides."),
    "text_to_image": Task("Text to image", "One frame, saved as PNG."),
    "image_to_video": Task("Image to video", "Begins with your picture, ends with one, or both.", (FIRST, LAST)),
    "loop": Task("Loop", "Begins and ends with your picture.", (FIRST,)),
    "extend_forward": Task("Extend forward", "What happens after your video.", (VIDEO,)),
    "extend_backward": Task("Extend backward", "What happened before your video.", (VIDEO,)),
    "connect": Task("Connect", "From one picture or video to another.", (Slot("first", "From"), Slot("last", "To"))),
    "edit": Task("Edit", "Your video again, changed as far as the edit ratio allows.", (VIDEO,)),
    "interpolate": Task("Interpolate", "The frames between those of your video.", (VIDEO,)),
}


@dataclass
class Wish:
    """What the fields hold; the page writes into it. Numbers are None where a field is empty."""

    prompt: str = ""
    negative_prompt: str = ""
    task: TaskName = "text_to_video"
    size: str = OWN_SIZE
    aspect: str = "1:1"
    height: float | None = 240
    width: float | None = 424
    num_frames: float | None = 16
    loops: float | None = 1
    edit_ratio: float | None = 0.4
    seed: float | None = 0
    steps: float | None = 30
    guidance_scale: float | None = 7.0
    method: SamplingMethod = "own"
    fps: float | None = 24.0
    saved_fps: float | None = 8.0
    kind: Kind = "mp4"

    def begin_with(self, start: Start) -> None:
        """Take over what a checkpoint was evaluated with."""
        self.size, self.aspect = name_of(start)
        self.height, self.width, self.num_frames = start.height, start.width, start.num_frames
        self.steps, self.guidance_scale = start.num_inference_steps, start.guidance_scale
        self.fps, self.saved_fps = start.fps, start.saved_fps

    def pixels(self) -> tuple[int, int]:
        """(height, width) that will be drawn."""
        if self.size == OWN_SIZE:
            return _whole(self.height, "Height"), _whole(self.width, "Width")
        return size_of(self.size, self.aspect)


@dataclass(frozen=True)
class Order:
    """One drawing, complete."""

    label: str
    checkpoint: str
    prompt: str
    config: GenerationConfig
    references: tuple[Upload, ...] = ()
    kind: Kind = "mp4"


def make_order(wish: Wish, choice: Choice, uploads: Mapping[str, Upload]) -> Order:
    """Check everything that can be checked before a checkpoint is loaded.

    Args:
        wish: the fields.
        choice: which checkpoint.
        uploads: by the key of their slot.

    Raises:
        KinoflowError: the first thing that is missing or wrong.
        pydantic.ValidationError: a value out of its range.
    """
    if not wish.prompt.strip():
        raise KinoflowError("The prompt is empty; describe what to show.")
    parse_prompt(wish.prompt)
    given = _references(wish.task, uploads)
    height, width = wish.pixels()
    config = GenerationConfig(
        task=wish.task, num_frames=_whole(wish.num_frames, "Length"), height=height, width=width,
        seed=_whole(wish.seed, "Seed"), negative_prompt=wish.negative_prompt,
        edit_ratio=_number(wish.edit_ratio, "Edit ratio"), loops=_whole(wish.loops, "Clips in a row"),
        reference_at="start" if "first" in given else "end",
        sampling=SamplingConfig(
            num_inference_steps=_whole(wish.steps, "Steps"), method=wish.method,
            guidance_scale=_number(wish.guidance_scale, "Guidance"), fps=_number(wish.fps, "Frame rate told"),
            saved_fps=_number(wish.saved_fps, "Frames per second"),
        ),
    )  # fmt: skip
    kind: Kind = "png" if wish.task == "text_to_image" else wish.kind
    return Order(choice.label, choice.checkpoint, wish.prompt.strip(), config, tuple(given.values()), kind)


def _references(name: TaskName, uploads: Mapping[str, Upload]) -> dict[str, Upload]:
    """What was uploaded for a task, by slot."""
    task = TASKS[name]
    given = {slot.key: uploads[slot.key] for slot in task.slots if slot.key in uploads}
    if name == "image_to_video" and not given:
        raise KinoflowError("Image to video needs a first frame, a last frame, or both; choose a file.")
    for slot in task.slots:
        if slot.key not in given and name != "image_to_video":
            raise KinoflowError(f"{task.label} needs a file for “{slot.label}”; choose one.")
    return given


def wish_of(settings: Mapping[str, Any]) -> Wish:
    """The fields that would ask for a finished file again; its references have to be uploaded anew."""
    try:
        config = GenerationConfig.model_validate(settings.get("config", {}) | {"seed": settings.get("seed", 0)})
    except ValidationError as error:
        raise KinoflowError("The settings of this file are from another version and cannot be used again.") from error
    sampling = config.sampling
    return Wish(
        prompt=str(settings.get("prompt", "")), negative_prompt=config.negative_prompt or "", task=config.task,
        height=config.height, width=config.width, num_frames=config.num_frames, loops=config.loops,
        edit_ratio=config.edit_ratio, seed=config.seed, steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale, method=sampling.method, fps=sampling.fps, saved_fps=sampling.saved_fps,
    )  # fmt: skip


def read_references(order: Order) -> tuple[video.Frames, ...]:
    """(T, H, W, 3) uint8 of every upload of an order."""
    return tuple(_read(upload.path) for upload in order.references)


def random_seed() -> int:
    """A seed for a person who does not care."""
    return random.SystemRandom().randint(0, MAX_SEED)


def _read(path: Path) -> video.Frames:
    frames = []
    for frame in video.decode_frames(path):
        frames.append(frame)
        if len(frames) > MAX_REFERENCE_FRAMES:
            raise KinoflowError(f"The video has more than {MAX_REFERENCE_FRAMES} frames; upload a shorter one.")
    return np.stack(frames)


def _number(value: float | None, name: str) -> float:
    if value is None:
        raise KinoflowError(f"{name} is empty; give a number.")
    return float(value)


def _whole(value: float | None, name: str) -> int:
    number = _number(value, name)
    if number != int(number):
        raise KinoflowError(f"{name} is {number:g}; give a whole number.")
    return int(number)
