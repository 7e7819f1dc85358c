import numpy as np
import pytest

from components.intervals import mean_score, named, share_score, statistic_score, values_score


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    scores = [mean_score(rng.exponential(2.0, 40)) for _ in range(400)]
    covered = np.mean([score.low <= 2.0 <= score.high for score in scores])
    assert 0.88 < covered < 0.98
    assert all(score.low <= score.mean <= score.high and score.n == 40 for score in scores)


def test_the_same_values_have_the_same_interval_and_more_of_them_a_narrower_one():
    values = np.random.default_rng(1).normal(size=30)
    assert mean_score(values) == mean_score(list(values))
    once, often = mean_score(values), mean_score(np.tile(values, 16))
    assert (often.high - often.low) < (once.high - once.low) / 3
    assert mean_score([3.0]).model_dump() == {"mean": 3.0, "low": 3.0, "high": 3.0, "n": 1}


def test_many_values_do_not_take_much_memory():
    score = mean_score(np.random.default_rng(2).normal(size=200_000))
    assert score.high - score.low == pytest.approx(2 * 1.96 / 200_000**0.5, rel=0.2)


def test_shares_have_wilson_intervals():
    # Newcombe 1998, table I: 81 of 263, and 0 of 20
    assert (round(share_score(81, 263).low, 4), round(share_score(81, 263).high, 4)) == (0.2553, 0.3662)
    assert (share_score(0, 20).low, round(share_score(0, 20).high, 4)) == (0.0, 0.1611)
    assert share_score(20, 20).high == 1.0
    assert values_score([True, False, True]) == share_score(2, 3)
    assert values_score([1.0, 0.0, 1.0]) == mean_score([1.0, 0.0, 1.0])


def test_a_statistic_of_two_samples_has_an_interval_around_it():
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=60), rng.normal(1.0, size=50)
    score = statistic_score(lambda a, b: abs(first[a].mean() - second[b].mean()), (60, 50))
    assert score.low <= score.mean <= score.high
    assert 0.4 < score.low < 1.0 < score.high < 1.6
    assert score.n == 60


def test_flat_metrics_carry_both_ends():
    score = share_score(1, 2)
    flat = named({"loop": {"continuous": score}}, "suite")
    assert flat == {
        "suite/loop/continuous": 0.5,
        "suite/loop/continuous_low": score.low,
        "suite/loop/continuous_high": score.high,
    }


def test_no_values_have_no_score():
    for make in (lambda: mean_score([]), lambda: share_score(0, 0), lambda: statistic_score(lambda a, b: 0.0, (0, 1))):
        with pytest.raises(ValueError, match="no score of no values"):
            make()
