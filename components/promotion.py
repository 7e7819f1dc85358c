"""The promotion rule: whether a challenger's scores are better than the champion's by more than chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from components.promotion_config import MetricRule, PromotionConfig
from components.scores import Score, difference, read_scores
from components.tracking import names
from components.tracking.versions import ModelVersion

Outcome = Literal["wins", "loses", "draws", "cannot be told"]
HELD_OUT = "held_out"


@dataclass(frozen=True)
class Decision:
    """What was decided about a challenger, and why, as one sentence."""

    wins: bool
    reason: str


@dataclass(frozen=True)
class Duel:
    """Both versions on one metric."""

    metric: str
    outcome: Outcome
    told: str


def decide(rule: PromotionConfig, champion: ModelVersion | None, challenger: ModelVersion) -> Decision:
    """Whether the challenger becomes champion.

    Args:
        rule: what it must do.
        champion: None where there is none yet.
        challenger: a version that was measured.
    """
    if champion is None:
        return Decision(True, "there was no champion")
    digest = challenger.tags.get(names.CHECKPOINT_DIGEST)
    if digest and digest == champion.tags.get(names.CHECKPOINT_DIGEST):
        return Decision(True, f"it is the checkpoint of version {champion.version}, measured anew")
    duels = list(_duels(rule.metrics, champion, challenger))
    guards = list(_duels(rule.guards, champion, challenger))
    lost = [duel for duel in (*duels, *guards) if duel.outcome == "loses"]
    won = [duel for duel in duels if duel.outcome == "wins"]
    unknown = [duel for duel in (*duels, *guards) if duel.outcome == "cannot be told"]
    against = f"against version {champion.version}"
    if lost:
        return Decision(False, f"loses {against} on {_listed(lost)}")
    if unknown and (rule.wins == "all" or not won or any(duel in guards for duel in unknown)):
        return Decision(False, f"cannot be told {against}: {_listed(unknown)}")
    enough = bool(won) and (rule.wins == "any" or len(won) == len(duels))
    if not enough:
        drawn = [duel for duel in duels if duel.outcome == "draws"]
        return Decision(False, f"no more than chance {against} on {_listed(drawn or unknown)}")
    return Decision(True, f"wins {against} on {_listed(won)}")


def _duels(rules: tuple[MetricRule, ...], champion: ModelVersion, challenger: ModelVersion) -> Iterator[Duel]:
    new, old = read_scores(challenger.metrics), read_scores(champion.metrics)
    for rule in rules:
        found = sorted(name for name in new.keys() | old.keys() if fnmatchcase(name, rule.metric))
        for name in found or [rule.metric]:
            fault = _fault(name, champion, challenger, name in old, name in new)
            if fault:
                yield Duel(name, "cannot be told", f"{name} ({fault})")
            else:
                yield _duel(rule, name, new[name], old[name])


def _duel(rule: MetricRule, name: str, new: Score, old: Score) -> Duel:
    change = difference(new, old)
    gain = change if rule.better == "higher" else Score(-change.value, -change.high, -change.low)
    least = rule.least_change * abs(old.value)
    outcome: Outcome = "draws"
    if gain.low > 0 and gain.value > least:
        outcome = "wins"
    elif gain.high < 0 and -gain.value > least:
        outcome = "loses"
    return Duel(name, outcome, f"{name}: {new} against {old}, {rule.better} is better")


def _fault(name: str, champion: ModelVersion, challenger: ModelVersion, there: bool, here: bool) -> str | None:
    """Why two numbers of that name cannot be compared."""
    if not there or not here:
        missing = [each.version for each, has in ((champion, there), (challenger, here)) if not has]
        return f"not measured for version {' and '.join(map(str, missing))}"
    tag, what = (names.HELD_OUT, "held-out clips") if name.startswith(HELD_OUT) else (names.MEASURED, "settings")
    if champion.tags.get(tag) != challenger.tags.get(tag):
        return f"version {champion.version} was measured with other {what}"
    return None


def _listed(duels: list[Duel]) -> str:
    """At most three of them in words."""
    told = "; ".join(duel.told for duel in duels[:3])
    return f"{told}; and {len(duels) - 3} more" if len(duels) > 3 else told
