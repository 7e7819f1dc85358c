"""How the weights are updated; read by configs that must not need torch."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OptimizerConfig(BaseModel):
    """AdamW and its schedule; the defaults are those of Open-Sora 1.1 (constant 2e-5, no warm-up, clip at 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(2e-5, gt=0, description="Reached after the warm-up.")
    schedule: Literal["constant", "cosine"] = Field("constant", description="What follows the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear rise from zero.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled, on every parameter.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay of the two moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    grad_clip: float | None = Field(1.0, gt=0, description="Global L2 norm; no clipping when absent.")

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The rate of optimizer step `step` (0 is the first) of a stage of `steps`.

        Linear from learning_rate / warmup_steps up, then constant, or half a cosine that would reach zero at `steps`.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        share = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
