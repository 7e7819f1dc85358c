"""What a check has found: one line of a table, and one line of advice when something is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "failed", "not checked"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: what was looked at.
        state: "note" is something that is missing and can be lived without.
        seen: what was seen, or why the check could not be made.
        advice: what to do about a failure; empty otherwise.
    """

    check: str
    state: State
    seen: str
    advice: str = ""
