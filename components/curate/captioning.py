"""Captions for clips that nobody has captioned, by a vision-language model, each asked for once.

Answers lie beside the objects by what was asked of whom about which frames, as JSON, in the model's own words: an
interrupted or repeated curation asks again only for what is missing, and other cleaning costs no question at all.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import polars as pl
from pydantic import JsonValue

from components import manifest, progress, store
from components.caption import MAX_CHARACTERS, clean_caption, with_camera_sentence, without_prefix
from components.caption_config import CaptionConfig, CaptionerConfig, CaptionFolder
from components.config import CurateConfig
from components.curate.rules import CAPTION_FAILED, apply_rules
from components.curate.scores.clip import with_text_match
from components.errors import KinoflowError
from components.media import Frames, UnreadableMedia
from components.stored_media import DamagedObject, fitted, local_object
from components.video import pick_frames

logger = logging.getLogger(__name__)

ORIGIN = "model"
FORMAT_VERSION = 1
CACHE_THREADS = 16
_SENTENCE_END = re.compile(r"[.!?][\"')\]]?(?=\s|$)")
POSITIONS = {1: (0.5,), 2: (0.25, 0.75), 3: (0.1, 0.5, 0.9)}
"""Of the shown frames as shares of a clip, as in Open-Sora 1.1."""
_ASK = (
    "Describe {what} in plain prose of at most six sentences, so completely that it could be made again from your "
    "words alone: every person and object with its looks, what each does and where it is, the place, the light and "
    "colours, and the style in which it is made. Say only what can be seen."
)
_PROMPTS = {
    0: _ASK.format(what="this picture"),
    1: "This is the middle frame of a short video. " + _ASK.format(what="the video"),
    2: "These are two frames of one short video, in order. " + _ASK.format(what="the video as a whole"),
    3: "These are three frames of one short video, in order. " + _ASK.format(what="the video as a whole"),
}

Row = Mapping[str, object]


@dataclass(frozen=True)
class Question:
    """What a model is asked about one clip: frames (H, W, 3) uint8 in order, all of one size, and the words."""

    clip_id: str
    frames: tuple[Frames, ...]
    prompt: str


@dataclass(frozen=True)
class Answer:
    """What came of a question: the model's words, or why there are none."""

    text: str | None
    failure: str = ""


class Captioner(Protocol):
    """A vision-language model."""

    @property
    def name(self) -> str:
        """Recorded with its captions."""
        ...

    @property
    def identity(self) -> str:
        """Changes when its answers may."""
        ...

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[str, Answer]]:
        """(clip id, answer) for every question, in any order; takes the next questions while it works."""
        ...


def whole_sentences(text: str) -> str:
    """A text that was cut off, up to the end of its last whole sentence; as it is when it has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def open_captioner(config: CaptionerConfig) -> Captioner:
    """The configured model, known to be there.

    Raises:
        KinoflowError: the server does not answer or does not offer the model, or the folder cannot be used.
    """
    if isinstance(config.source, CaptionFolder):
        from components.curate.caption_model import FolderCaptioner

        return FolderCaptioner(config, config.source)
    from components.curate.caption_endpoint import EndpointCaptioner

    return EndpointCaptioner(config, config.source)


def check_captioner(config: CaptionConfig) -> None:
    """Fail before any work when captions are required and the model that shall write them is not there."""
    if config.captioner is None or not config.required:
        return
    if isinstance(config.captioner.source, CaptionFolder):
        from components.curate.caption_model import check_folder

        check_folder(config.captioner.source.folder)
    else:
        open_captioner(config.captioner)


def caption_clips(clips: pl.DataFrame, objects: str, config: CurateConfig, cache: str) -> pl.DataFrame:
    """Give captions to the clips that only lack one, say what the camera does, and fill `text_match` for all of them.

    The match is that of the caption as it stands in the end, found or written, so that its rule is asked about both
    alike. When captions are required, a clip without an answer is dropped with the reason "caption_failed"; if that,
    or a caption that does not match its clip, brings another of its duplicates to the front, that one is asked about
    in turn.

    Args:
        clips: table of the `clips` schema, scores and groups of duplicates filled in, not yet decided.
        objects: URI prefix of the content-addressed objects.
        config: of the whole stage, since the rules decide which clips are worth a question.
        cache: URI prefix of earlier answers.

    Raises:
        KinoflowError: captions are required and the model is not there, or too many clips have no answer.
    """
    told = clips.with_columns(caption=pl.Series(_in_full(clips, config.captions), dtype=pl.String))
    matched = with_text_match(told, config.clip)
    if config.captions.captioner is None:
        return matched
    return _with_answers(matched, objects, config, config.captions.captioner, cache)


def _with_answers(
    clips: pl.DataFrame, objects: str, config: CurateConfig, captioner: CaptionerConfig, cache: str
) -> pl.DataFrame:
    model: Captioner | None = None
    answers: dict[str, Answer] = {}
    while not (wanted := _wanted(clips, config, answers)).is_empty():
        if model is None:
            try:
                model = open_captioner(captioner)
            except KinoflowError as error:
                if config.captions.required:
                    raise
                logger.warning("%d clips stay without a caption: %s", len(wanted), error)
                return clips
        found = _ask(wanted.to_dicts(), objects, captioner, model, cache)
        answers |= found
        clips = with_text_match(_filled(clips, found, model.name, config.captions), config.clip)
    failed = [answer.failure for answer in answers.values() if answer.text is None]
    if config.captions.required and failed and len(failed) > captioner.max_failed_share * len(answers):
        raise KinoflowError(
            f"{len(failed)} of {len(answers)} clips got no caption (the first: {failed[0]}), which is more than "
            f"captioner.max_failed_share {captioner.max_failed_share:g} allows; what was answered is kept, start again "
            "when the model answers."
        )
    return clips


def _wanted(clips: pl.DataFrame, config: CurateConfig, asked: Mapping[str, Answer]) -> pl.DataFrame:
    """Clips that would be kept if only they had a caption, ordered by where they lie in which file."""
    would = apply_rules(clips, config.rules, caption_required=False).filter(pl.col("outcome") == "kept")
    undecided = clips.filter(pl.col("outcome").is_null() & pl.col("caption").is_null())
    wanted = undecided.join(would.select("clip_id"), on="clip_id", how="semi")
    return wanted.filter(~pl.col("clip_id").is_in(list(asked))).sort("object_key", "source_id", "start_frame")


def _filled(clips: pl.DataFrame, answers: Mapping[str, Answer], model: str, config: CaptionConfig) -> pl.DataFrame:
    rows: list[dict[str, str | None]] = []
    motions = dict(clips.select("clip_id", "camera_motion").iter_rows())
    for clip_id, answer in answers.items():
        text = None if answer.text is None else _with_camera(_refined(answer.text, config), motions[clip_id], config)
        failure = answer.failure if answer.text is None else "" if text else "Of its caption nothing is left, cleaned."
        rows.append({"clip_id": clip_id, "_text": text or None, "_failure": failure or None})
    schema = {"clip_id": pl.String, "_text": pl.String, "_failure": pl.String}
    joined = clips.join(pl.DataFrame(rows, schema=schema), on="clip_id", how="left", maintain_order="left")
    told, failed = pl.col("_text").is_not_null(), pl.col("_failure").is_not_null() & config.required
    return joined.with_columns(
        caption=pl.coalesce("caption", "_text"),
        caption_origin=pl.when(told).then(pl.lit(ORIGIN)).otherwise("caption_origin"),
        caption_model=pl.when(told).then(pl.lit(model)).otherwise("caption_model"),
        outcome=pl.when(failed).then(pl.lit("dropped")).otherwise("outcome"),
        reason=pl.when(failed).then(pl.lit(CAPTION_FAILED)).otherwise("reason"),
        detail=pl.when(failed).then("_failure").otherwise("detail"),
    ).select(clips.columns)


def _refined(text: str, config: CaptionConfig) -> str:
    text = " ".join(text.split())
    text = without_prefix(text) if config.strip_prefixes else text
    return clean_caption(text) if config.clean else text


def _in_full(clips: pl.DataFrame, config: CaptionConfig) -> list[str | None]:
    return [
        _with_camera(caption, motion, config) if caption else caption
        for caption, motion in clips.select("caption", "camera_motion").iter_rows()
    ]


def _with_camera(caption: str, motion: str | None, config: CaptionConfig) -> str:
    """A caption and what the camera does, where that is asked for; nothing is added to no caption."""
    if not (caption and config.camera_sentence):
        return caption
    told = with_camera_sentence(caption, motion)
    return clean_caption(told) if config.clean else told


def _ask(
    rows: list[dict[str, object]], objects: str, config: CaptionerConfig, model: Captioner, cache: str
) -> dict[str, Answer]:
    """Answers by clip id, in the order of the rows: those that are known, and new ones."""
    requests = {str(row["clip_id"]): _request(row, config, model.identity) for row in rows}
    uris = {clip_id: _cache_uri(cache, request) for clip_id, request in requests.items()}
    with ThreadPoolExecutor(CACHE_THREADS) as pool:
        answers = {name: Answer(text) for name, text in zip(uris, pool.map(_known, uris.values())) if text}
    missing = [row for row in rows if row["clip_id"] not in answers]
    logger.info(
        "captions: %d of %d clips are known, %d are asked of %s", len(answers), len(rows), len(missing), model.name
    )
    with progress.task("caption", len(missing)) as task:
        for clip_id, answer in model.answers(_questions(missing, objects, config, answers)):
            answers[clip_id] = answer
            if answer.text is not None:
                document = {"caption": answer.text, "model": model.name, "request": requests[clip_id]}
                store.write_bytes(uris[clip_id], json.dumps(document, ensure_ascii=False, sort_keys=True).encode())
            task.update(min(len(answers), len(missing)))
    return {clip_id: answers[clip_id] for clip_id in requests}


def _request(row: Row, config: CaptionerConfig, identity: str) -> dict[str, JsonValue]:
    """Everything that decides an answer."""
    return {
        "format_version": FORMAT_VERSION,
        "model": identity,
        "content_sha256": str(row["content_sha256"]),
        "frames": list(_frame_numbers(row, config)),
        "short_side_px": config.short_side_px,
        "max_new_tokens": config.max_new_tokens,
        "prompt": _prompt(row, config),
    }


def _cache_uri(cache: str, request: dict[str, JsonValue]) -> str:
    digest = manifest.digest_of(request)
    return store.join(cache, digest[:2], f"{digest}.json")


def _known(uri: str) -> str | None:
    try:
        document = json.loads(store.read_bytes(uri))
    except (store.ObjectMissing, ValueError):
        return None
    text = document.get("caption") if isinstance(document, dict) else None
    return text if isinstance(text, str) and 0 < len(text) <= MAX_CHARACTERS else None


def _prompt(row: Row, config: CaptionerConfig) -> str:
    return config.prompt or _PROMPTS[config.num_frames if row["media"] == "video" else 0]


def _frame_numbers(row: Row, config: CaptionerConfig) -> list[int]:
    """Frames of the source, ascending; a still has one and a short clip fewer than asked for."""
    start, count = int(str(row["start_frame"])), int(str(row["num_frames"]))
    shares = POSITIONS[config.num_frames if row["media"] == "video" else 1]
    return sorted({start + min(int(share * count), count - 1) for share in shares})


def _questions(
    rows: list[dict[str, object]], objects: str, config: CaptionerConfig, answers: dict[str, Answer]
) -> Iterator[Question]:
    """Questions about clips whose frames can be read; the others get their failure right here.

    Rows of one file follow each other in the order of its frames, so that it is decoded once and little is held.
    """
    groups: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        groups.setdefault(str(row["source_id"]), []).append(row)
    for group in groups.values():
        left = list(group)
        try:
            with local_object(objects, str(group[0]["object_key"]), str(group[0]["content_sha256"])) as path:
                numbers = [number for row in group for number in _frame_numbers(row, config)]
                size = fitted(
                    int(str(group[0]["height"])), int(str(group[0]["width"])), short_side=config.short_side_px
                )
                frames, held = pick_frames(path, numbers, size), dict[int, Frames]()
                while left:
                    wanted = _frame_numbers(left[0], config)
                    held = {number: frame for number, frame in held.items() if number >= wanted[0]}
                    while not held.keys() >= set(wanted):
                        number, frame = next(frames)
                        held[number] = frame
                    shown = tuple(held[number] for number in wanted)
                    yield Question(str(left[0]["clip_id"]), shown, _prompt(left[0], config))
                    left.pop(0)
        except (UnreadableMedia, DamagedObject, store.ObjectMissing) as error:
            detail = f"Its frames could not be read for a caption: {error}"
            answers |= {str(row["clip_id"]): Answer(None, detail) for row in left}
