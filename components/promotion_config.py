"""What a challenger must do to become champion. Needs pydantic only."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.section import Section

Better = Literal["higher", "lower"]


class MetricRule(Section):
    """One metric that two model versions are compared on."""

    metric: str = Field(min_length=1, description="Name as in MLflow; with * for all that fit: suite/*/consistency.")
    better: Better = Field("higher", description="Which way is an improvement.")
    least_change: float = Field(
        0.0, ge=0, description="Smaller differences count as none, even beyond the interval; a share of the champion's."
    )


class PromotionConfig(Section):
    """When an evaluated checkpoint takes the alias of the champion in the model registry.

    It must win beyond the interval on any (or all) of `metrics`, and lose on none of them nor of `guards`.
    """

    automatic: bool = Field(True, description="Move the alias; else only record what would have been decided.")
    alias: str = Field("champion", min_length=1, description="Alias in the model registry that is moved.")
    metrics: tuple[MetricRule, ...] = Field(
        (MetricRule(metric="held_out_loss", better="lower", least_change=0.01),),
        min_length=1,
        description="What it must win on.",
    )
    wins: Literal["any", "all"] = Field("any", description="On how many of them it must win.")
    guards: tuple[MetricRule, ...] = Field((), description="What it must not lose on besides.")
