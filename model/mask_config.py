"""How often each kind of frame mask is trained on; read by configs that must not need torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Ratio = Annotated[float, Field(ge=0, le=1)]

QUARTER_KINDS = ("mask_quarter_random", "mask_quarter_head", "mask_quarter_tail", "mask_quarter_head_tail")


class MaskRatios(BaseModel):
    """Share of training samples per mask kind (Open-Sora 1.1's names); the shares add up to 1.

    A mask shows some frames to the network as a clean condition: at most a quarter of the clip, single images, or, as
    Open-Sora 1.2 added, every second frame. The default masks nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mask_no: Ratio = Field(1.0, description="Every frame is generated.")
    mask_quarter_random: Ratio = Field(0.0, description="A run of up to a quarter of the frames, anywhere.")
    mask_quarter_head: Ratio = Field(0.0, description="Up to a quarter of the frames, at the start.")
    mask_quarter_tail: Ratio = Field(0.0, description="Up to a quarter of the frames, at the end.")
    mask_quarter_head_tail: Ratio = Field(0.0, description="Equally many frames at both ends, up to a quarter each.")
    mask_image_random: Ratio = Field(0.0, description="One frame, anywhere.")
    mask_image_head: Ratio = Field(0.0, description="The first frame.")
    mask_image_tail: Ratio = Field(0.0, description="The last frame.")
    mask_image_head_tail: Ratio = Field(0.0, description="The first and the last frame.")
    mask_interpolate: Ratio = Field(0.0, description="Every second frame, from the first or the second on.")

    @model_validator(mode="after")
    def _check_sum(self) -> MaskRatios:
        total = math.fsum(ratio for _, ratio in self.items())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"mask ratios must add up to 1, these add up to {total:g}; mask_no takes the rest")
        return self

    @classmethod
    def opensora(cls) -> MaskRatios:
        """The mixture of Open-Sora 1.1's three stages: a quarter of all samples is masked."""
        return cls(
            mask_no=0.75,
            mask_quarter_random=0.025,
            mask_quarter_head=0.025,
            mask_quarter_tail=0.025,
            mask_quarter_head_tail=0.05,
            mask_image_random=0.025,
            mask_image_head=0.025,
            mask_image_tail=0.025,
            mask_image_head_tail=0.05,
        )

    def items(self) -> Iterator[tuple[str, float]]:
        """(kind, ratio) in the order in which they are drawn."""
        for kind in type(self).model_fields:
            yield kind, getattr(self, kind)

    def check_num_frames(self, num_frames: int) -> None:
        """Refuse a clip length for which a kind in use has no sensible mask.

        Raises:
            ValueError: 2 or 3 frames with a quarter kind (a quarter is less than a frame), or 2 frames with
                mask_image_head_tail (nothing would be left to generate).
        """
        if num_frames in (2, 3):
            for kind, ratio in self.items():
                if ratio > 0 and kind in QUARTER_KINDS:
                    raise ValueError(quarter_too_short(kind, num_frames))
        if num_frames == 2 and self.mask_image_head_tail > 0:
            raise ValueError(
                "mask_image_head_tail leaves nothing to generate in clips of 2 frames; use longer clips or set it to 0."
            )


def quarter_too_short(kind: str, num_frames: int) -> str:
    """The sentence for a quarter mask on a clip that is too short for one."""
    return f"{kind} needs clips of at least 4 frames (or single images), got {num_frames}; set its ratio to 0."
