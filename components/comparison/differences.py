"""What differs between two contestants: settings in words, and scores with the interval of their difference."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import JsonValue

from components.comparison.contestants import Contestant
from components.scores import Score, difference, lower_is_better

ABSENT = "not set"
MAX_CHARS = 90
VERDICTS = ("better", "worse", "perhaps", "no")
NOT_TOLD = {"num_threads", "read_ahead_bytes", "parallel_files"}
"""Settings that change no result."""


@dataclass(frozen=True)
class Setting:
    """One setting that differs.

    Attributes:
        name: in words.
        places: parts of the run in which it is set.
        old, new: its values.
        change: how much, in words; empty where that cannot be said.
        other_code: whether one of the two was made by code that has no such setting.
    """

    name: str
    places: tuple[str, ...]
    old: str
    new: str
    change: str
    other_code: bool = False


@dataclass(frozen=True)
class ScoreChange:
    """One score of both.

    Attributes:
        change: new minus old, with its interval.
        verdict: "better", "worse", "no more than chance" where the interval of the change contains 0, and the first two
            with "perhaps" where no interval is known.
    """

    name: str
    old: Score
    new: Score
    change: Score
    verdict: str


def settings_between(old: Contestant, new: Contestant) -> list[Setting]:
    """Every setting that differs, each once, with all the places in which it does."""
    found: dict[tuple[str, str, str], list[str]] = {}
    numbers: dict[tuple[str, str, str], tuple[JsonValue, JsonValue]] = {}
    same_code = old.lineage.get("code") == new.lineage.get("code")
    newer: set[tuple[str, str, str]] = set()
    for part in dict.fromkeys([*old.configs, *new.configs]):
        before, after = (dict(_leaves(each.configs.get(part, {}))) for each in (old, new))
        if not before or not after:
            continue  # not recorded, which is told elsewhere
        for key in dict.fromkeys([*before, *after]):
            mine, other = before.get(key, ABSENT), after.get(key, ABSENT)
            if mine == other or key[-1] in NOT_TOLD:
                continue
            name = _in_words(key)
            entry = (name, _shown(mine), _shown(other))
            numbers[entry] = mine, other
            found.setdefault(entry, []).append(part)
            if not same_code and (_is_new(key, before) or _is_new(key, after)):
                newer.add(entry)
    merged = _without_echoes(found)
    return [
        Setting(
            name,
            tuple(dict.fromkeys(parts)),
            mine,
            other,
            _change(*numbers[name, mine, other]),
            (name, mine, other) in newer,
        )
        for (name, mine, other), parts in merged.items()
    ]


def unrecorded(*contestants: Contestant) -> list[str]:
    """Sentences about settings that nobody can compare, because one side does not say them."""
    parts = dict.fromkeys(part for each in contestants for part in each.configs)
    return [
        f"{each.name} does not say the settings of its {part}"
        for part in parts
        for each in contestants
        if not each.configs.get(part)
    ]


def scores_between(old: Contestant, new: Contestant) -> list[ScoreChange]:
    """Every score that both have; what is more than chance first."""
    changes = []
    for name in old.scores.keys() & new.scores.keys():
        mine, other = old.scores[name], new.scores[name]
        change = difference(other, mine)
        verdict = "no more than chance"
        if change.value and not change.low <= 0 <= change.high:
            verdict = "worse" if (change.value > 0) == lower_is_better(name) else "better"
            verdict = verdict if change.has_interval else f"perhaps {verdict}"
        changes.append(ScoreChange(name, mine, other, change, verdict))
    return sorted(changes, key=lambda each: (VERDICTS.index(each.verdict.split()[0]), each.name))


def _leaves(values: JsonValue, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], JsonValue]]:
    """Values that are no mappings, and no lists of mappings, by their path."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(values, list) and values and all(isinstance(value, dict) for value in values):
        for place, value in enumerate(values, 1):
            named = value.get("name") if isinstance(value, dict) else None
            yield from _leaves(value, (*path, str(named or place)))
    elif path:
        yield path, values


def _is_new(path: tuple[str, ...], there: dict[tuple[str, ...], JsonValue]) -> bool:
    """Whether a config knows nothing of that name: neither a value nor its absence."""
    return not any(path[:depth] in there for depth in range(1, len(path) + 1))


def _in_words(path: tuple[str, ...]) -> str:
    """`("optimizer", "learning_rate")` -> "learning rate of optimizer": the inner first, as people say it."""
    words = [re.sub(r"[_\s]+", " ", part).strip() for part in reversed(path)]
    return " of ".join(words)


def _without_echoes(found: dict[tuple[str, str, str], list[str]]) -> dict[tuple[str, str, str], list[str]]:
    """A setting that is handed on to another part under a longer path is told once, under the shorter."""
    merged: dict[tuple[str, str, str], list[str]] = {}
    for (name, mine, other), parts in sorted(found.items(), key=lambda item: len(item[0][0])):
        for known in merged:
            if known[1:] == (mine, other) and name.startswith(f"{known[0]} of "):
                merged[known] += parts
                break
        else:
            merged[name, mine, other] = list(parts)
    return merged


def _shown(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return ABSENT
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"


def _change(old: JsonValue, new: JsonValue) -> str:
    numbers = [value for value in (old, new) if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != 2 or min(numbers) <= 0:
        return ""
    factor = numbers[1] / numbers[0]
    if factor >= 1.5:
        return f"{factor:.3g} times as much"
    if factor <= 1 / 1.5:
        return f"{1 / factor:.3g} times less"
    return f"{(factor - 1) * 100:+.3g} %"
