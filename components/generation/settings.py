"""Everything that decides the pixels of a video besides its prompt and its references; needs pydantic only."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from components.sampling_config import SamplingConfig
from components.section import Section
from model.aspect import named_resolution

TaskName = Literal[
    "text_to_image", "text_to_video", "image_to_video", "loop", "extend_forward", "extend_backward", "connect", "edit",
    "interpolate",
]  # fmt: skip
CONDITION_SHARE = 4
"""A clip hands a quarter of its frames on to the next, as in Open-Sora 1.1's own examples (16, 32 and 64 frames)."""
_PIXELS = re.compile(r"\s*(\d+)\s*[x×*]\s*(\d+)\s*", re.IGNORECASE)
_NAMED = re.compile(r"\s*(\w+?)(?:[\s,]+(\d+(?:\.\d+)?)\s*:\s*(\d+(?:\.\d+)?))?\s*")


class GenerationConfig(Section):
    """One video: its task, size, length and how it is sampled.

    Beside `height` and `width` it takes their name: `size="240p 16:9"`, or `size="240x426"`, height first.
    """

    task: TaskName = "text_to_video"
    mask_strategy: str | None = Field(
        None, description="Open-Sora 1.1's string, where references go; the task's own when absent."
    )
    num_frames: int = Field(16, ge=1, description="Frames of one clip; a text_to_image has one whatever this says.")
    height: int = Field(240, ge=8, le=8192, description="In pixels.")
    width: int = Field(426, ge=8, le=8192, description="In pixels.")
    seed: int = Field(42, ge=0, lt=2**63, description="Of the first sample; the next ones count up from it.")
    num_samples: int = Field(1, ge=1, description="Videos for each prompt.")
    loops: int = Field(1, ge=1, description="Clips in a row, each continuing the one before.")
    condition_frame_length: int | None = Field(
        None, ge=0, description="Frames a clip hands on to the next, or takes of a video; a quarter when absent."
    )
    total_frames: int | None = Field(None, ge=1, description="Cut the video to so many frames; all when absent.")
    edit_ratio: float = Field(0.4, gt=0, le=1, description="How far an edit goes: near 0 little, 1 everything.")
    reference_at: Literal["start", "end"] = Field("start", description="Where image_to_video puts a single reference.")
    reference_interval: int | None = Field(
        None, ge=1, description="Take every so many frames of a reference; as many as keep its speed when absent. "
        "Open-Sora 1.1 took every frame (1), though it was trained on every third.",
    )  # fmt: skip
    negative_prompt: str | None = Field(None, description="What to steer away from; its null text if absent.")
    inverted_aspect: bool = Field(False, description="Tell the network height / width, an error of Open-Sora 1.1.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="What the network computes in.")
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="before")
    @classmethod
    def _size_by_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("size") is None:
            return {k: v for k, v in data.items() if k != "size"} if isinstance(data, dict) else data
        height, width = parse_size(str(data["size"]))
        return {name: value for name, value in data.items() if name != "size"} | {"height": height, "width": width}

    @field_validator("mask_strategy", "negative_prompt")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        return None if value is None or not value.strip() else value

    @model_validator(mode="after")
    def _loops_make_sense(self) -> Self:
        if self.loops == 1:
            return self
        if self.task in ("text_to_image", "extend_backward"):
            raise ValueError(f"{self.task} makes one clip; leave loops at 1, or choose another task")
        if self.carried_frames >= self.num_frames:
            raise ValueError(
                f"condition_frame_length {self.carried_frames} leaves no new frame in clips of {self.num_frames}; "
                f"choose at most {self.num_frames - 1}"
            )
        return self

    @property
    def clip_frames(self) -> int:
        """Frames of one clip."""
        return 1 if self.task == "text_to_image" else self.num_frames

    @property
    def carried_frames(self) -> int:
        """Frames that a clip takes from the one before it, or from a video."""
        if self.condition_frame_length is not None:
            return self.condition_frame_length
        return max(1, self.num_frames // CONDITION_SHARE)

    @property
    def video_frames(self) -> int:
        """Frames of the whole video: the clips without what they repeat, cut where that is asked for."""
        frames = self.clip_frames + (self.loops - 1) * (self.clip_frames - self.carried_frames)
        return frames if self.total_frames is None else min(frames, self.total_frames)


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels of "240x426" (height first) or of a resolution and an aspect, "240p 16:9".

    The aspect is width to height; without one it is 16:9, and 1:1 for the square resolutions 256, 512 and 1024.

    Raises:
        ValueError: what cannot be read, or names a resolution that does not exist.
    """
    pixels = _PIXELS.fullmatch(text)
    if pixels:
        return int(pixels[1]), int(pixels[2])
    named = _NAMED.fullmatch(text)
    if named is None:
        raise ValueError(f"the size {text!r} is neither pixels (240x426) nor a resolution with an aspect (240p 16:9)")
    resolution = named_resolution(named[1])
    wide, high = (16.0, 9.0) if not resolution.name.isdigit() else (1.0, 1.0)
    if named[2] is not None:
        wide, high = float(named[2]), float(named[3])
    if not wide or not high:
        raise ValueError(f"the aspect of the size {text!r} must be two numbers above 0, such as 16:9")
    key = min(resolution.sizes, key=lambda key: abs(float(key) - high / wide))
    return resolution.sizes[key]


def frames_of(seconds: float, fps: float) -> int:
    """Frames that last `seconds`, at least one."""
    return max(1, round(seconds * fps))
