"""What the commands of the terminal share."""

from __future__ import annotations

from rich.console import Console

BUCKET = "s3://kinoflow"
"""Where runs lie unless a person says otherwise."""


def make_console() -> Console:
    """The terminal as it is; a log file wide enough for a table."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)
