"""What decides about a clip: thresholds on columns that are already measured."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from components.section import Section


class Bounds(Section):
    """Smallest and largest value of a column; a clip without a value breaks neither."""

    min: float | None = Field(None, description="No lower limit when absent.")
    max: float | None = Field(None, description="No upper limit when absent.")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}; no clip could be kept")
        return self


class CurationRules(Section):
    """Thresholds on score columns; a clip is dropped for the first rule it breaks, in this order.

    After all of these come captions, then near-duplicates among what is left, then semantic duplicates
    (`max_similarity`) among what is left of those. A rule of which the limit is absent is off.
    """

    min_frames: int = Field(10, ge=1, description="Shorter video shots are dropped; images are exempt.")
    max_black_share: float = Field(0.5, ge=0, le=1, description="Largest share of black frames.")
    min_brightness: float = Field(0.0, ge=0, le=255, description="Mean luma.")
    max_brightness: float = Field(255.0, ge=0, le=255, description="Mean luma.")
    min_contrast: float = Field(5.0, ge=0, description="Standard deviation of the colour channel of most contrast.")
    min_sharpness: float = Field(3.0, ge=0, description="Variance of the Laplacian.")
    max_text_share: float = Field(0.02, ge=0, le=1, description="Share of the picture covered by text.")
    min_motion: float = Field(
        0.04, ge=0, description="Mean flow in pixels per frame of a picture 256 px long; images are exempt."
    )
    max_frozen_share: float | None = Field(
        None, ge=0, le=1, description="Largest share of frames that repeat the one before; images are exempt."
    )
    max_letterbox_share: float | None = Field(
        None, ge=0, le=1, description="Largest share of the picture under black bars."
    )
    min_flow: float | None = Field(None, ge=0, description="Flow as Open-Sora 1.1 measures it; images are exempt.")
    max_flow: float | None = Field(None, ge=0, description="Flow as Open-Sora 1.1 measures it; images are exempt.")
    min_aesthetic: float | None = Field(None, description="Aesthetic score, 1 to 10; needs CLIP weights.")
    min_text_match: float | None = Field(None, description="Match of caption and picture; needs CLIP weights.")
    thresholds: dict[str, Bounds] = Field(
        {}, description="Limits of any other numeric column of the clips table, asked in the order of their names."
    )
    keep_near_duplicates: bool = Field(False, description="Keep all of those that look the same, not the largest only.")
    max_similarity: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Cosine of CLIP's features; of clips that are more alike the largest is kept; needs CLIP weights.",
    )

    @model_validator(mode="after")
    def _limits_leave_room(self) -> Self:
        for name in ("brightness", "flow"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{name} {low:g} is above max_{name} {high:g}; no clip could be kept")
        return self
