"""What one training stage takes over from the one before it, as recorded in its checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Handover(BaseModel):
    """The contract between a stage and what came before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Literal["fresh", "parent"] = "fresh"
    ema: Literal["weights", "parent"] = Field("weights", description="The average starts from the weights, or goes on.")
    optimizer: Literal["fresh", "carried", "reset"] = Field(
        "fresh", description="The parent's moments go on (carried) or are left behind (reset)."
    )
    parent: str | None = Field(None, description="Digest of the checkpoint the stage started from.")
    dataset: str | None = Field(None, description="Digest of the bucket output it is trained on.")
