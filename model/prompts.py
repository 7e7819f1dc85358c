"""What a prompt can say besides its text: references, a mask strategy, and a text per clip of a long video."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_JSON_KEYS = ("reference_path", "mask_strategy")


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt taken apart.

    Attributes:
        texts: one per loop, the text of that clip.
        reference_paths: references named in the prompt, or None if it names none.
        mask_strategy: strategy given in the prompt, or None.
    """

    texts: tuple[str, ...]
    reference_paths: tuple[str, ...] | None = None
    mask_strategy: str | None = None


def parse_prompt(prompt: str, num_loops: int = 1) -> ParsedPrompt:
    """Take a prompt apart: text, then optionally a JSON object (Open-Sora 1.1's form for long videos).

    `a boat {"reference_path": "boat.png;sea.mp4", "mask_strategy": "0"}`: the object's settings override those
    given beside the prompt; other keys are ignored. The text may change between clips: `|0|a boat|2|a storm`.

    Args:
        prompt: as typed.
        num_loops: number of clips the video is made of.

    Raises:
        ValueError: saying what of the prompt cannot be read.
    """
    text, brace, rest = prompt.partition("{")
    settings = _parse_settings(brace + rest, prompt) if brace else {}
    paths = settings.get("reference_path")
    return ParsedPrompt(
        texts=tuple(split_loop_texts(text.strip(), num_loops)),
        reference_paths=None if paths is None else split_reference_paths(paths),
        mask_strategy=settings.get("mask_strategy"),
    )


def split_reference_paths(paths: str) -> tuple[str, ...]:
    """Split `a.png;b.mp4` into its paths; the position is the reference id of mask strategies."""
    return tuple(part.strip() for part in paths.split(";") if part.strip())


def _parse_settings(text: str, prompt: str) -> Mapping[str, str | None]:
    try:
        settings: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"From the first '{{' on, the prompt {prompt!r} must be one JSON object and nothing else: {error.msg} "
            f"at character {error.pos} of it."
        ) from None
    for key in _JSON_KEYS:
        value = settings.get(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{key} in the prompt {prompt!r} must be a string in quotes, got {value!r}.")
    return {key: settings.get(key) for key in _JSON_KEYS}


def split_loop_texts(text: str, num_loops: int) -> list[str]:
    """The text of every clip of a long video: `|0|a|2|b` with 3 loops gives a, a, b.

    A text that does not start with |0| serves all clips.

    Raises:
        ValueError: when the clip numbers do not rise or go past the last clip.
    """
    if not text.startswith("|0|"):
        return [text] * num_loops
    _, *marked = re.split(r"\|(\d+)\|", text)
    starts = [int(number) for number in marked[0::2]]
    ends = [*starts[1:], num_loops]
    texts: list[str] = []
    for start, end, part in zip(starts, ends, marked[1::2], strict=True):
        if end <= start:
            raise ValueError(
                f"Clip numbers in {text!r} must rise and stay below the number of loops, {num_loops}; "
                f"{start} is followed by {end}."
            )
        texts += [part.strip()] * (end - start)
    return texts
