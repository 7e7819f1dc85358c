"""What an evaluation draws of its own stages. Needs pydantic only."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.section import Section

GridTask = Literal["text_to_video", "text_to_image"]


class StageGridConfig(Section):
    """The grid that an evaluation draws of its own stages, with its own size and sampling."""

    num_prompts: int = Field(4, ge=0, description="Rows, the first prompts of the evaluation; no grid when 0.")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Of the noise; every prompt is drawn with each.")
    tasks: tuple[GridTask, ...] = Field(("text_to_video",), min_length=1, description="What is drawn of each prompt.")
