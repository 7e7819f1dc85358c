"""What the curate stage may be told: shots, scores, rules, captions. Read through `components.config`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components.caption_config import CaptionConfig
from components.rules_config import CurationRules
from components.section import Section

TextDetector = Literal["classical", "neural"]


class ShotConfig(Section):
    """Shot detection (PySceneDetect). `min_shot_s: 0.6` gives its own command line's cuts, frame for frame."""

    detector: Literal["adaptive", "content"] = "adaptive"
    threshold: float = Field(
        3.0, gt=0, description="The detector's own: a ratio for adaptive (3), a content change for content (27)."
    )
    min_content: float = Field(15.0, ge=0, description="Least content change of a cut (adaptive detector only).")
    fades: bool = Field(False, description="Cut in the middle of every fade through black as well.")
    fade_threshold: int = Field(12, ge=0, le=255, description="Mean level below which a picture is faded out.")
    min_fade_s: float = Field(0.1, ge=0, description="A picture that is faded out for less is no fade.")
    min_shot_frames: int = Field(5, ge=1, description="Cuts closer together than this are one cut.")
    min_shot_s: float | None = Field(None, gt=0, description="In seconds, instead of min_shot_frames.")
    max_shot_s: float = Field(60.0, gt=0, description="Longer shots are divided into clips of this length and a rest.")


class ClipModelConfig(Section):
    """A local CLIP, for the scores that need one."""

    folder: str = Field(description="Folder in the layout of transformers, weights as safetensors.")
    aesthetic_weights: str | None = Field(None, description="Safetensors file of LAION's aesthetic predictor.")


class CurateConfig(Section):
    """How sources become clips."""

    seed: int = Field(42, description="Decides which sources are held out.")
    shots: ShotConfig = ShotConfig()
    rules: CurationRules = CurationRules()
    captions: CaptionConfig = CaptionConfig()
    analysis_long_side_px: int = Field(
        256, ge=64, description="Frames are scored at this size at most, text at up to half as much again."
    )
    clip: ClipModelConfig | None = Field(
        None, description="Measures aesthetic, text_match and embedding; they stay empty when absent."
    )
    text_detector: TextDetector = Field(
        "classical",
        description="What measures text_share: lines of strokes, or a trained network (needs the extra `text`).",
    )
    eval_share: float = Field(0.1, ge=0, lt=1, description="Share of source files held out for evaluation.")
    max_failed_share: float = Field(0.9, ge=0, le=1, description="The stage fails above this share of broken files.")
    workers: int | None = Field(
        None, ge=1, description="Processes; all cores when absent. The result does not depend on it."
    )

    @model_validator(mode="after")
    def _similarity_is_measured(self) -> Self:
        if self.rules.max_similarity is not None and self.clip is None:
            raise ValueError("rules.max_similarity compares CLIP's features; name a local CLIP in clip.folder")
        return self

    @property
    def needs_torch(self) -> bool:
        """Whether a network is part of it: the image without torch cannot do it."""
        captioner = self.captions.captioner
        return self.clip is not None or (captioner is not None and captioner.source.kind == "folder")
