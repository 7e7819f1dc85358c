"""Judges every step before it touches the weights, from nothing but numbers that all ranks share."""

from __future__ import annotations

import math
import statistics
from collections import deque

from pydantic import BaseModel, ConfigDict, Field

from model.sentinel_config import SentinelConfig

DEVIATIONS_PER_MAD = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
MIN_SPREAD = 0.3  # of a logarithm: buckets that come up rarely may well lie e times above the others
TINY = 1e-30


class LeftOut(BaseModel):
    """Steps whose batches are not trained on: they count as done, the schedule passes over them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_step: int = Field(ge=0)
    end_step: int = Field(gt=0, description="Exclusive.")
    reason: str

    def covers(self, step: int) -> bool:
        """Whether that step is one of them (0 is the first of a stage)."""
        return self.first_step <= step < self.end_step

    def since(self, step: int) -> LeftOut:
        """The part that lies at or after a step."""
        return self.model_copy(update={"first_step": max(self.first_step, step)})


class SentinelState(BaseModel):
    """What the next verdict depends on; part of every checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    losses: tuple[float, ...] = Field((), description="Of the last applied steps, oldest first.")
    grad_norms: tuple[float, ...] = Field((), description="Before clipping, of the same steps.")
    skipped_in_a_row: int = Field(0, ge=0)


class Sentinel:
    """A running judgement of losses and gradient norms.

    Args:
        config: thresholds.

    Attributes:
        skipped_in_a_row: steps refused since the last one that was applied.
    """

    def __init__(self, config: SentinelConfig) -> None:
        self._config = config
        self.restore(SentinelState())

    def state(self) -> SentinelState:
        """What `restore` goes on from."""
        return SentinelState(
            losses=tuple(self._losses), grad_norms=tuple(self._grad_norms), skipped_in_a_row=self.skipped_in_a_row
        )

    def restore(self, state: SentinelState) -> None:
        """Judge from here on as the one whose state this is."""
        self._losses = deque(state.losses, self._config.window_steps)
        self._grad_norms = deque(state.grad_norms, self._config.window_steps)
        self.skipped_in_a_row = state.skipped_in_a_row

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """Why the step must not be applied, in words; None when it may, and then it is remembered."""
        fault = self._fault("loss", loss, self._losses) or self._fault("gradient norm", grad_norm, self._grad_norms)
        if fault is not None:
            self.skipped_in_a_row += 1
            return fault
        self.skipped_in_a_row = 0
        self._losses.append(loss)
        self._grad_norms.append(grad_norm)
        return None

    @property
    def gives_in(self) -> bool:
        """Whether so many steps in a row were refused that going on as before is pointless."""
        return self.skipped_in_a_row >= self._config.max_skipped_in_a_row

    def _fault(self, name: str, value: float, before: deque[float]) -> str | None:
        if not math.isfinite(value):
            return f"the {name} is {value:g}"
        threshold = self._config.spike_threshold
        if threshold is None or len(before) < self._config.min_steps:
            return None
        score = robust_score(value, before)
        if score <= threshold:
            return None
        return f"the {name} is {value:.4g}, {score:.1f} robust deviations above a median of {_median(before):.4g}"


def robust_score(value: float, before: deque[float]) -> float:
    """How many robust standard deviations the logarithm of a value lies above the median of those before it."""
    logs = [math.log(max(number, TINY)) for number in before]
    middle = statistics.median(logs)
    spread = DEVIATIONS_PER_MAD * statistics.median([abs(log - middle) for log in logs])
    return (math.log(max(value, TINY)) - middle) / max(spread, MIN_SPREAD)


def _median(values: deque[float]) -> float:
    return statistics.median(values)
