"""What a prompt can say beside its text, as in Open-Sora 1.1: texts that change on the way, and JSON at its end."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise

from components.caption import MAX_CHARACTERS, clean_caption
from components.errors import KinoflowError

_CHANGE = re.compile(r"\|(\d+)\|")


@dataclass(frozen=True)
class Prompt:
    """A prompt taken apart.

    Attributes:
        texts: (first loop, text), in order, from loop 0.
        reference_path: from the JSON: paths joined by ";".
        mask_strategy: from the JSON.
    """

    texts: tuple[tuple[int, str], ...]
    reference_path: str | None = None
    mask_strategy: str | None = None

    def text_of(self, loop: int) -> str:
        """The text of that loop: the last one that has begun."""
        return next(text for start, text in reversed(self.texts) if start <= loop)


def parse_prompt(prompt: str, loops: int = 1) -> Prompt:
    """Take a prompt apart: `text`, `|0|text A|2|text B`, each may end with `{"reference_path": …}`.

    Raises:
        KinoflowError: nothing is left to encode, it is far too long, or one of its parts cannot be read.
    """
    text, values = _split_json(prompt)
    if len(text) > MAX_CHARACTERS:
        raise KinoflowError(
            f"The prompt {_short(text)} has {len(text.split()):,} words in {len(text):,} characters; a network hears "
            f"a few hundred words, and at most {MAX_CHARACTERS:,} characters are taken."
        )
    texts = _split_loops(text, loops)
    for _, part in texts:
        if not clean_caption(part):
            raise KinoflowError(f"The prompt {_short(prompt)} is empty once it is cleaned; describe what to show.")
    return Prompt(texts, values.get("reference_path"), values.get("mask_strategy"))


def _split_json(prompt: str) -> tuple[str, dict[str, str | None]]:
    found = re.search(r"[{\[]", prompt)
    if found is None:
        return prompt, {}
    text, rest = prompt[: found.start()], prompt[found.start() :]
    try:
        values = json.loads(rest)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise KinoflowError(
            f"The prompt {_short(prompt)} goes on with {_short(rest)}, which is no JSON object; write "
            f'{{"reference_path": "…", "mask_strategy": "…"}} at the end, or leave brackets out.'
        )
    wanted = {name: values[name] for name in ("reference_path", "mask_strategy") if name in values}
    for name, value in wanted.items():
        if value is not None and not isinstance(value, str):
            raise KinoflowError(f"{name} in the prompt {_short(prompt)} must be text, not {_short(str(value))}.")
    return text, {name: value or None for name, value in wanted.items()}


def _split_loops(text: str, loops: int) -> tuple[tuple[int, str], ...]:
    if not _CHANGE.search(text):
        return ((0, text.strip()),)
    before, *pieces = _CHANGE.split(text)
    texts = tuple((int(loop), part.strip()) for loop, part in zip(pieces[::2], pieces[1::2], strict=True))
    starts = [start for start, _ in texts]
    if before.strip() or starts[0] != 0:
        raise KinoflowError(f"The prompt {_short(text)} changes on the way and must begin with |0|.")
    if any(later <= earlier for earlier, later in pairwise(starts)):
        raise KinoflowError(f"The prompt {_short(text)} changes at the loops {starts}, which must go up.")
    if starts[-1] >= loops:
        raise KinoflowError(
            f"The prompt {_short(text)} changes at loop {starts[-1]}, but there are {loops} (counted from 0); "
            f"ask for {starts[-1] + 1} loops or more."
        )
    return texts


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else f"{text[:59]}…")
