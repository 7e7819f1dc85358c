"""What is said about a file beside its bytes: captions, where it comes from, under which licence, by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from components import store

SIDECAR_SUFFIXES = (".json", ".txt")
MAX_SIDECAR_BYTES = 1 << 20


class Said(NamedTuple):
    """What a table or a sidecar says about one file; None where it says nothing.

    Attributes:
        caption: of the whole file.
        shots: JSON list of `ShotCaption`.
        origin: where the captions are from: "table", "sidecar_json" or "sidecar_txt".
        source, licence, attribution: where the file comes from, its licence, whom to name.
        extra: JSON object of a table's other columns.
        note: a sentence on what could not be used.
    """

    caption: str | None = None
    shots: str | None = None
    origin: str | None = None
    source: str | None = None
    licence: str | None = None
    attribution: str | None = None
    extra: str | None = None
    note: str | None = None

    def over(self, other: Said) -> Said:
        """This, completed by the other; captions of the whole and of shots stay together, notes add up."""
        merged = [mine if mine is not None else theirs for mine, theirs in zip(self, other, strict=True)]
        said = Said._make(merged)
        if self.caption is not None or self.shots is not None:
            said = said._replace(caption=self.caption, shots=self.shots, origin=self.origin)
        notes = [note for note in (self.note, other.note) if note]
        return said._replace(note=" ".join(notes) or None)


class ShotCaption(BaseModel):
    """The caption of one stretch of a video, in seconds from its start."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    start_s: float = Field(ge=0, allow_inf_nan=False)
    end_s: float = Field(gt=0, allow_inf_nan=False)
    caption: str


class Sidecar(BaseModel):
    """A `.json` beside a video: captions, and where the video comes from; other keys are not ours."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    caption: str | None = None
    shots: list[ShotCaption] | None = None
    source: str | None = None
    licence: str | None = Field(None, validation_alias=AliasChoices("licence", "license"))
    attribution: str | None = Field(None, validation_alias=AliasChoices("attribution", "author", "credit"))


_SHOTS = TypeAdapter(list[ShotCaption])


def read_beside(uri: str, suffixes: Iterable[str] | None) -> Said:
    """What the `.json` and `.txt` of the same stem beside a file say.

    Args:
        uri: of the file, local or in a store.
        suffixes: which sidecars there are; None when only a look can tell.
    """
    stem = uri.removesuffix(PurePosixPath(uri).suffix)
    there = SIDECAR_SUFFIXES if suffixes is None else suffixes
    return merge({suffix: _reader(stem + suffix) for suffix in there})


def merge(readers: dict[str, Callable[[], bytes | str | None]]) -> Said:
    """What sidecars say together; the `.json` goes before the `.txt`.

    Args:
        readers: by suffix, what gives a sidecar's bytes, None when there is none, or a sentence when it cannot be read.
    """
    said = Said()
    for suffix in SIDECAR_SUFFIXES:
        if suffix not in readers or (suffix == ".txt" and (said.caption or said.shots)):
            continue
        data = readers[suffix]()
        if isinstance(data, str):
            said = said.over(Said(note=data))
        elif data is not None:
            text = data.decode("utf-8-sig", errors="replace")
            said = said.over(_parse_json(text) if suffix == ".json" else _plain(text))
    return said


def too_large(suffix: str) -> str:
    """The sentence on a sidecar that is larger than any description."""
    return f"The {suffix} beside it is not used: it is larger than {MAX_SIDECAR_BYTES} bytes."


def _reader(uri: str) -> Callable[[], bytes | str | None]:
    suffix = PurePosixPath(uri).suffix

    def read() -> bytes | str | None:
        try:
            data = store.read_bytes(uri)
        except store.ObjectMissing:
            return None
        except store.StoreError as error:
            if store.is_s3(uri) and not isinstance(error, store.Refused):
                raise
            return f"The {suffix} beside it is not used: {error}"
        return too_large(suffix) if len(data) > MAX_SIDECAR_BYTES else data

    return read


def _plain(text: str) -> Said:
    return Said(text.strip(), None, "sidecar_txt") if text.strip() else Said()


def _parse_json(text: str) -> Said:
    if not text.strip():
        return Said()
    try:
        sidecar = Sidecar.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = " ".join(first["msg"].split())[:200]
        return Said(note=f"The .json beside it is not used: {f'{where}: ' if where else ''}{message}.")
    caption = stripped(sidecar.caption)
    shots = _SHOTS.dump_json(sidecar.shots).decode() if sidecar.shots else None
    return Said(
        caption=caption,
        shots=shots,
        origin="sidecar_json" if caption or shots else None,
        source=stripped(sidecar.source),
        licence=stripped(sidecar.licence),
        attribution=stripped(sidecar.attribution),
    )


def stripped(text: str | None) -> str | None:
    """The text without blanks around it; None when nothing is left."""
    return (text.strip() or None) if text else None


def cut(said: Said, max_chars: int) -> Said:
    """Captions of at most so many characters, ended at a blank where one is near; what was cut is noted."""
    notes = []
    if said.caption is not None and len(said.caption) > max_chars:
        notes.append(f"The caption of {len(said.caption)} characters is cut to {max_chars}.")
        said = said._replace(caption=_shortened(said.caption, max_chars))
    if said.shots is not None and len(said.shots) > max_chars:
        spans = _SHOTS.validate_json(said.shots)
        long = sum(len(span.caption) > max_chars for span in spans)
        if long:
            notes.append(f"Captions of {long} shots are cut to {max_chars} characters.")
            short = [span.model_copy(update={"caption": _shortened(span.caption, max_chars)}) for span in spans]
            said = said._replace(shots=_SHOTS.dump_json(short).decode())
    return said.over(Said(note=" ".join(notes))) if notes else said


def _shortened(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    head = text[:max_chars]
    blank = head.rfind(" ", max_chars * 9 // 10)
    return head[:blank].rstrip() if blank > 0 else head
