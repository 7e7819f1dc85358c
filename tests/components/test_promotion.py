"""The promotion rule on numbers alone."""

import pytest

from components.promotion import decide
from components.promotion_config import MetricRule, PromotionConfig
from components.scores import Score, difference, read_scores
from components.tracking.versions import ModelVersion


def version(number: int, metrics: dict[str, float], **tags: str) -> ModelVersion:
    tags = {"kinoflow.measured": "m", "kinoflow.held_out": "h", **{f"kinoflow.{k}": v for k, v in tags.items()}}
    return ModelVersion("kinoflow", number, (), f"s3://bucket/{number}", tags, metrics, 0)


def suite(value: float, half_width: float, name: str = "suite/loop/closure") -> dict[str, float]:
    return {name: value, f"{name}_low": value - half_width, f"{name}_high": value + half_width}


CLOSURE = MetricRule(metric="suite/loop/closure")
MOTION = MetricRule(metric="suite/image-to-video/motion")
LOSS = MetricRule(metric="held_out_loss", better="lower", least_change=0.01)
MOTION_NAME = MOTION.metric


def test_intervals_belong_to_their_metric() -> None:
    scores = read_scores({**suite(0.5, 0.1), "held_out_loss": 0.4, "truth/colour_low": 3.0})
    assert scores == {
        "suite/loop/closure": Score(0.5, 0.4, 0.6),
        "held_out_loss": Score(0.4, 0.4, 0.4),
        "truth/colour_low": Score(3.0, 3.0, 3.0),
    }
    assert [str(score) for score in scores.values()] == ["0.5 (0.4 to 0.6)", "0.4", "3"]


def test_the_interval_of_a_difference_is_that_of_independent_errors() -> None:
    change = difference(Score(0.9, 0.87, 0.94), Score(0.7, 0.66, 0.73))
    assert change.value == pytest.approx(0.2)
    assert (change.value - change.low, change.high - change.value) == pytest.approx((0.0424264, 0.0565685), rel=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "wins", "reason"),
    [
        ((0.5, 0.05), (0.7, 0.05), True, "wins against version 1 on suite/loop/closure: 0.7 (0.65 to 0.75) against "
         "0.5 (0.45 to 0.55), higher is better"),
        ((0.5, 0.05), (0.55, 0.05), False, "no more than chance against version 1 on suite/loop/closure: 0.55"),
        ((0.5, 0.05), (0.3, 0.05), False, "loses against version 1 on suite/loop/closure: 0.3"),
    ],
)  # fmt: skip
def test_only_more_than_chance_counts(
    old: tuple[float, float], new: tuple[float, float], wins: bool, reason: str
) -> None:
    rule = PromotionConfig(metrics=(CLOSURE,))
    decision = decide(rule, version(1, suite(*old)), version(2, suite(*new)))
    assert decision.wins == wins and decision.reason.startswith(reason)


def test_lower_can_be_better_and_small_changes_can_be_nothing() -> None:
    rule = PromotionConfig(metrics=(LOSS,))
    champion = version(1, {"held_out_loss": 0.5})
    assert decide(rule, champion, version(2, {"held_out_loss": 0.49})).wins
    assert not decide(rule, champion, version(2, {"held_out_loss": 0.496})).wins
    worse = decide(rule, champion, version(2, {"held_out_loss": 0.6}))
    assert worse.reason == "loses against version 1 on held_out_loss: 0.6 against 0.5, lower is better"


def test_winning_on_one_does_not_make_up_for_losing_on_another() -> None:
    champion = version(1, suite(0.5, 0.05) | suite(0.8, 0.05, MOTION_NAME))
    better = version(2, suite(0.7, 0.05) | suite(0.8, 0.05, MOTION_NAME))
    mixed = version(2, suite(0.7, 0.05) | suite(0.5, 0.05, MOTION_NAME))
    both = version(2, suite(0.7, 0.05) | suite(0.95, 0.05, MOTION_NAME))
    for rule in (PromotionConfig(metrics=(CLOSURE, MOTION)), PromotionConfig(metrics=(CLOSURE,), guards=(MOTION,))):
        assert decide(rule, champion, better).wins
        lost = decide(rule, champion, mixed)
        assert not lost.wins and lost.reason.startswith("loses against version 1 on suite/image-to-video/motion")
    every = PromotionConfig(metrics=(CLOSURE, MOTION), wins="all")
    assert not decide(every, champion, better).wins
    assert decide(every, champion, both).wins


def test_one_rule_may_mean_many_metrics() -> None:
    rule = PromotionConfig(metrics=(MetricRule(metric="suite/*"),))
    champion = version(1, suite(0.5, 0.05) | suite(0.8, 0.05, MOTION_NAME))
    decision = decide(rule, champion, version(2, suite(0.7, 0.05) | suite(0.8, 0.05, MOTION_NAME)))
    assert decision.wins and "loop/closure" in decision.reason and "_low" not in decision.reason


def test_numbers_from_different_measurements_are_not_compared() -> None:
    champion, rule = version(1, {"held_out_loss": 0.5}), PromotionConfig(metrics=(LOSS,))
    other = decide(rule, champion, version(2, {"held_out_loss": 0.1}, held_out="other"))
    assert not other.wins
    assert other.reason == (
        "cannot be told against version 1: held_out_loss (version 1 was measured with other held-out clips)"
    )
    rule = PromotionConfig(metrics=(CLOSURE,))
    other = decide(rule, version(1, suite(0.5, 0.0)), version(2, suite(0.9, 0.0), measured="other"))
    assert not other.wins and "measured with other settings" in other.reason
    missing = decide(rule, version(1, {}), version(2, suite(0.9, 0.0)))
    assert missing.reason == "cannot be told against version 1: suite/loop/closure (not measured for version 1)"


def test_the_first_and_the_same_need_not_win() -> None:
    rule = PromotionConfig()
    assert decide(rule, None, version(1, {})).reason == "there was no champion"
    again = decide(rule, version(1, {}, checkpoint_digest="d"), version(2, {}, checkpoint_digest="d"))
    assert again.wins and again.reason == "it is the checkpoint of version 1, measured anew"
