"""Numbers with their intervals, and whether the difference of two is more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LOW, HIGH = "_low", "_high"
LOWER_IS_BETTER = ("loss", "error", "distance", "frechet", "flicker", "_mae", "_mse", "lpips")


@dataclass(frozen=True)
class Score:
    """A number and the ends of its 95 % interval, which are the number itself where none was measured."""

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether its uncertainty is known."""
        return self.low < self.high

    def __str__(self) -> str:
        """The number with its interval, to four digits."""
        interval = f" ({_digits(self.low)} to {_digits(self.high)})" if self.has_interval else ""
        return f"{_digits(self.value)}{interval}"


def read_scores(metrics: Mapping[str, float]) -> dict[str, Score]:
    """Scores by name, from metrics of which some have `<name>_low` and `<name>_high` beside them."""
    ends = {name + end for name in metrics for end in (LOW, HIGH) if name + LOW in metrics and name + HIGH in metrics}
    return {
        name: Score(value, min(metrics.get(name + LOW, value), value), max(metrics.get(name + HIGH, value), value))
        for name, value in metrics.items()
        if name not in ends
    }


def difference(new: Score, old: Score) -> Score:
    """`new` minus `old` with its interval.

    The ends are recovered from those of the two (MOVER: Zou and Donner, "Construction of confidence limits about
    effect measures", Statistics in Medicine 27, 2008, section 2), which allows for intervals that are not symmetric.
    """
    change = new.value - old.value
    below = math.hypot(new.value - new.low, old.high - old.value)
    above = math.hypot(new.high - new.value, old.value - old.low)
    return Score(change, change - below, change + above)


def _digits(value: float) -> str:
    return f"{value:.4g}"


def lower_is_better(name: str) -> bool:
    """Whether a smaller number is the better one, as far as a metric's name tells."""
    return any(word in name.lower() for word in LOWER_IS_BETTER)
