"""The fixed prompts that checkpoints are compared on. Needs pydantic only."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from components.config import SamplingConfig
from components.section import Section
from components.stage_grid_config import GridTask


class GridConfig(Section):
    """Prompts down, checkpoints across: every checkpoint draws the same cells from the same noise."""

    prompts: tuple[str, ...] = Field(min_length=1, description="Rows of the grid.")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Of the noise; every prompt is drawn with each.")
    tasks: tuple[GridTask, ...] = Field(("text_to_video",), min_length=1, description="What is drawn of each prompt.")
    num_frames: int = Field(16, ge=1)
    height: int = Field(240, ge=8)
    width: int = Field(424, ge=8)
    sampling: SamplingConfig = SamplingConfig()
    batch_size: int = Field(8, ge=1, description="Cells of a checkpoint that are drawn at once.")

    @model_validator(mode="after")
    def _rows_differ(self) -> Self:
        for name in ("prompts", "seeds", "tasks"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"the {name} of the grid must differ from each other")
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError("a prompt of the grid is empty; describe what to show")
        return self
