"""Numbers with the interval they are known to: 95 %, by the bootstrap for means and by Wilson for shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959963984540054
"""Of 0.975: what lies beyond it on both sides is 5 %."""
RESAMPLES = 2000
BLOCK = 1 << 22
"""Values drawn at once, for the memory."""

Values = NDArray[np.float64]


class Score(BaseModel):
    """One number and how far it can be trusted.

    Attributes:
        mean: of the values; for a share, the share.
        low, high: ends of the 95 % interval; both are the mean where there is one value only.
        n: how many values; with one there is no interval, with few it is a rough one.
    """

    model_config = ConfigDict(frozen=True)
    mean: float
    low: float
    high: float
    n: int


def mean_score(values: Sequence[float] | Values) -> Score:
    """Mean with its percentile bootstrap interval (Efron 1979); the same values give the same interval.

    Raises:
        ValueError: there are no values.
    """
    array = np.asarray(values, np.float64)
    _refuse_none(array.size)
    low, high = _percentiles(_resampled_means(array) if array.size > 1 else array)
    return Score(mean=float(array.mean()), low=low, high=high, n=array.size)


def share_score(successes: int, n: int) -> Score:
    """Share of `n` with its Wilson score interval (Wilson 1927), which stays sensible at 0 and 1.

    Raises:
        ValueError: `n` is 0.
    """
    _refuse_none(n)
    share, z2 = successes / n, NORMAL_QUANTILE**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_QUANTILE / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Score(mean=share, low=max(0.0, min(share, middle - half)), high=min(1.0, max(share, middle + half)), n=n)


def values_score(values: Sequence[float | bool]) -> Score:
    """Truths as a share, numbers as a mean."""
    if all(isinstance(value, bool | np.bool_) for value in values):
        return share_score(sum(map(bool, values)), len(values))
    return mean_score([float(value) for value in values])


def statistic_score(
    statistic: Callable[[NDArray[np.int64], NDArray[np.int64]], float], sizes: tuple[int, int], *, resamples: int = 200
) -> Score:
    """A statistic of two samples with its basic bootstrap interval (Davison and Hinkley 1997, 5.2).

    Drawing samples with repeats makes distances larger than they are; the basic interval takes that back.

    Args:
        statistic: of the rows (n,) taken of the first sample and (m,) of the second.
        sizes: (n, m); `n` of the score is n.
        resamples: how often both are drawn.
    """
    _refuse_none(min(sizes))
    first, second = (np.arange(size) for size in sizes)
    found = statistic(first, second)
    rng = np.random.default_rng(0)
    draws = [
        statistic(rng.integers(0, sizes[0], sizes[0]), rng.integers(0, sizes[1], sizes[1])) for _ in range(resamples)
    ]
    low, high = _percentiles(np.array(draws))
    return Score(mean=found, low=max(0.0, min(found, 2 * found - high)), high=max(found, 2 * found - low), n=sizes[0])


def named(scores: dict[str, dict[str, Score]], prefix: str) -> dict[str, float]:
    """Scores as flat metrics: `prefix/<group>/<name>` with `..._low` and `..._high`."""
    flat: dict[str, float] = {}
    for group, row in scores.items():
        for name, score in row.items():
            where = f"{prefix}/{group}/{name}"
            flat |= {where: score.mean, f"{where}_low": score.low, f"{where}_high": score.high}
    return flat


def _resampled_means(array: Values) -> Values:
    """Means of samples drawn with repeats, by the same draws for every sample of that size: scores stay comparable."""
    rng = np.random.default_rng(array.size)
    at_once = max(1, BLOCK // array.size)
    counts = [min(at_once, RESAMPLES - done) for done in range(0, RESAMPLES, at_once)]
    return np.concatenate([array[rng.integers(0, array.size, (count, array.size))].mean(axis=1) for count in counts])


def _percentiles(values: Values) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _refuse_none(n: int) -> None:
    if n < 1:
        raise ValueError("There is no score of no values.")
