"""What the evaluate stage may be told. Read through `components.config`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from components.promotion_config import PromotionConfig
from components.sampling_config import SamplingConfig, check_size
from components.section import Section
from components.stage_grid_config import StageGridConfig


class EvaluateConfig(Section):
    """Held-out loss, generated samples of every task and what is measured on them."""

    seed: int = 42
    sampling: SamplingConfig = SamplingConfig()
    num_frames: int = Field(16, ge=1)
    height: int = Field(240, ge=8)
    width: int = Field(424, ge=8)
    frame_interval: int = Field(3, ge=1, description="Of the frames that references take of a clip; the training's.")
    condition_frames: int | None = Field(
        None, ge=1, description="Frames that an extension is given; a quarter of the frames when absent."
    )
    prompts: tuple[str, ...] = Field((), description="Prompts; taken from held-out captions when empty.")
    num_text_to_image: int = Field(8, ge=0)
    num_text_to_video: int = Field(8, ge=0)
    num_image_to_video: int = Field(8, ge=0, description="First frames given.")
    num_loop: int = Field(8, ge=0, description="One picture given as first and last frame.")
    num_extend_forward: int = Field(8, ge=0, description="The end of a clip given as first frames.")
    num_extend_backward: int = Field(8, ge=0, description="The beginning of a clip given as last frames.")
    num_connect: int = Field(8, ge=0, description="First and last frame of a clip given.")
    num_interpolate: int = Field(8, ge=0, description="Every second frame of a held-out clip given.")
    interpolate_guidance_scale: float = Field(
        1.0, ge=0, description="Of frames to interpolate: they follow their neighbours rather than the text."
    )
    num_reference_clips: int = Field(64, ge=2, description="Held-out clips that generated ones are compared with.")
    feature_folder: str | None = Field(
        None,
        description="Local folder of a CLIP, or of another image model of transformers, for the Frechet distance and "
        "(CLIP only) the agreement of text and video. Nothing is fetched; not measured when absent.",
    )
    num_saved: int = Field(16, ge=1, description="Samples of each task written as files.")
    batch_size: int = Field(8, ge=1)
    timesteps: int = Field(10, ge=1, description="Equidistant timesteps of the held-out loss.")
    measure_shapes: bool = Field(False, description="Measure the demo's truth: colour, shape, motion, background.")
    num_threads: int | None = Field(None, ge=1)
    registered_model: str = Field("kinoflow", description="Name in the model registry.")
    alias: str = Field("candidate", description="Alias given to the registered version.")
    promotion: PromotionConfig = PromotionConfig()
    grid: StageGridConfig = StageGridConfig()

    @model_validator(mode="after")
    def _size_divides(self) -> Self:
        check_size("size of the samples", self.height, self.width)
        return self

    @model_validator(mode="after")
    def _something_is_left_to_generate(self) -> Self:
        conditioned = self.num_extend_forward or self.num_extend_backward
        if conditioned and self.num_frames > 1 and self.given_frames >= self.num_frames:
            raise ValueError(f"condition_frames {self.given_frames} must be below num_frames {self.num_frames}")
        return self

    @property
    def given_frames(self) -> int:
        """Frames that an extension is given."""
        return self.condition_frames if self.condition_frames is not None else max(1, self.num_frames // 4)

    def sampling_of(self, task: str) -> SamplingConfig:
        """How samples of a task are drawn."""
        if task != "interpolate":
            return self.sampling
        return self.sampling.model_copy(update={"guidance_scale": self.interpolate_guidance_scale})
