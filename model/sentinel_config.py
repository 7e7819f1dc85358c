"""When a step is not to be trusted; read by configs that must not need torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SentinelConfig(BaseModel):
    """What keeps a bad loss or gradient from the weights.

    A value that is not finite is always refused. A spike is a loss or gradient norm whose logarithm lies further above
    the median of the last applied steps than `spike_threshold` robust standard deviations (1.4826 x the median
    absolute deviation, at least 0.3). The default is meant for catastrophes: at the usual spread of small batches, of
    half a unit of the logarithm, it takes a loss 150 times the median; at the spread of large ones, 20 times.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spike_threshold: float | None = Field(
        10.0, gt=0, description="Robust standard deviations; only what is not finite is refused when absent."
    )
    window_steps: int = Field(128, ge=8, description="Applied steps that a spike is judged by.")
    min_steps: int = Field(32, ge=4, description="Applied steps before anything is called a spike.")
    max_skipped_in_a_row: int = Field(5, ge=1, description="With so many the stage goes back to a checkpoint.")
    lookback_steps: int = Field(10, ge=0, description="Steps left out before the first one refused, after going back.")
    max_rollbacks: int = Field(3, ge=0, description="The stage gives up when it would have to go back once more.")
