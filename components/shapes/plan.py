"""What the made world will hold, decided before a pixel is drawn: files, shots, captions, defects."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from components.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Scene,
    Staging,
    all_scenes,
    draw_staging,
)

FileDefect = Literal["duplicate", "near_duplicate", "truncated", "no_index", "empty", "not_media"]
ShotDefect = Literal["static", "black", "too_short", "text"]

VIDEO_SIZES: tuple[tuple[int, int], ...] = ((96, 96), (96, 128), (128, 96), (96, 112), (112, 96), (96, 168), (120, 120))
IMAGE_SIZES: tuple[tuple[int, int], ...] = ((96, 96), (128, 128), (96, 128), (128, 96), (144, 112), (112, 144))
"""(height, width) in pixels."""
FPS = (24.0, 12.0, 30.0, 15.0, 25.0, 30000 / 1001)
SHOTS_PER_VIDEO = (4, 1, 5, 6, 3, 5, 2, 6, 4, 5)
VIDEO_SUFFIXES = (*[".mp4"] * 9, ".mkv", ".mov")
IMAGE_SUFFIXES = (".png", ".jpg")
SHOT_FRAMES = (20, 28)
"""Long enough for a window of 16 frames, short enough that the shape moves visibly within it."""
SHORT_SHOT_FRAMES = (5, 9)
VIDEO_FILE_DEFECTS: dict[FileDefect, float] = {
    "duplicate": 0.03,
    "near_duplicate": 0.03,
    "truncated": 0.02,
    "no_index": 0.015,
    "empty": 0.01,
    "not_media": 0.01,
}
IMAGE_FILE_DEFECTS: dict[FileDefect, float] = {"duplicate": 0.03, "near_duplicate": 0.03, "truncated": 0.02}
SHOT_DEFECTS: dict[ShotDefect, float] = {"static": 0.025, "black": 0.02, "too_short": 0.02, "text": 0.025}
IMAGE_DEFECTS: dict[ShotDefect, float] = {"black": 0.03, "text": 0.04}
"""Planted shares of all files, or of all shots."""
STAGING_DRAWS = 6
BLACK_CAPTION = "a black screen"


class ShapesConfig(BaseModel):
    """How much of the made world to write."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, description="Decides everything; the same seed gives the same bytes.")
    num_videos: int = Field(default=110, ge=1, le=9999, description="Video files, damaged ones included.")
    num_images: int = Field(default=80, ge=0, le=9999, description="Image files, damaged ones included.")
    num_prompts: int = Field(default=24, ge=0, le=216, description="Different prompts for evaluation.")
    num_copies: int = Field(
        default=0, ge=0, le=9999, description="Further copies of sound files: encoded anew, rescaled, trimmed."
    )


@dataclass(frozen=True, slots=True)
class Shot:
    """One shot: the scene it truly shows (None when black), and the caption that comes with it."""

    scene: Scene | None
    staging: Staging
    num_frames: int
    caption: str
    defect: ShotDefect | None


@dataclass(frozen=True, slots=True)
class Copying:
    """How a further copy is made from the same shots.

    Attributes:
        scale: of height and width.
        crf: quality of the encoding.
        cut_before, cut_after: share of each shot's frames that is cut off, rounded down.
    """

    scale: float
    crf: int
    cut_before: float = 0.0
    cut_after: float = 0.0


COPYINGS = (
    Copying(1.0, 30), Copying(0.75, 24), Copying(1.5, 20), Copying(1.0, 16, cut_before=0.1),
    Copying(1.0, 16, cut_after=0.1), Copying(1.0, 16, 0.1, 0.1), Copying(0.75, 28, 0.05, 0.1), Copying(0.5, 24, 0.1),
)  # fmt: skip
"""Encoded anew, rescaled, trimmed at either end or both, and some of that together."""


@dataclass(frozen=True, slots=True)
class MediaFile:
    """One file to write; `copy_of` names the original of a duplicate or near-duplicate."""

    name: str
    media: Literal["video", "image"]
    height: int
    width: int
    fps: float | None
    rotation_deg: int
    shots: tuple[Shot, ...]
    defect: FileDefect | None
    copy_of: str | None
    copying: Copying | None = None

    def shot_frames(self) -> list[tuple[int, int]]:
        """Of each shot the first frame that is in the file and the one after the last."""
        cut = self.copying or Copying(1.0, 0)
        lengths = [shot.num_frames for shot in self.shots]
        return [(int(cut.cut_before * length), length - int(cut.cut_after * length)) for length in lengths]


def plan_files(config: ShapesConfig) -> list[MediaFile]:
    """Plans all files, videos first; a copy always comes after its original."""
    videos = _plan_media(config, "video", config.num_videos, VIDEO_FILE_DEFECTS)
    images = _plan_media(config, "image", config.num_images, IMAGE_FILE_DEFECTS)
    return videos + images + _plan_copies(config, videos + images)


def _plan_copies(config: ShapesConfig, files: list[MediaFile]) -> list[MediaFile]:
    """Further copies of sound files, each kind of copying in turn; stills are only encoded anew or rescaled."""
    sound = [file for file in files if file.defect is None and file.rotation_deg == 0]
    rng = random.Random(f"{config.seed} copies")
    copies = []
    for number in range(config.num_copies if sound else 0):
        original = rng.choice(sound)
        copying = COPYINGS[number % (len(COPYINGS) if original.media == "video" else 3)]
        name = f"copy-{number:04d}{_recoded_suffix(original)}"
        copies.append(
            replace(original, name=name, defect="near_duplicate", copy_of=original.name, copying=copying)
        )  # fmt: skip
    return copies


def evaluation_prompts(config: ShapesConfig) -> list[str]:
    """Captions of different moving scenes, every colour, shape, motion and background equally frequent."""
    rng = random.Random(f"{config.seed} prompts")
    pool = all_scenes(moving=True)
    rng.shuffle(pool)
    chosen: list[Scene] = []
    for _ in range(config.num_prompts):
        # The scene whose four values have been used least; the shuffle decides between equals.
        scene = min(pool, key=lambda candidate: sum(_uses(chosen, candidate)))
        pool.remove(scene)
        chosen.append(scene)
    return [scene.caption for scene in chosen]


def _uses(chosen: Sequence[Scene], scene: Scene) -> Iterator[int]:
    """For each value of a scene, how often it was used, squared so that one excess outweighs many."""
    for values, name in (
        (COLOURS, "colour"),
        (SHAPES, "shape"),
        (MOTIONS, "motion"),
        (BACKGROUNDS, "background"),
    ):
        count = sum(getattr(other, name) == getattr(scene, name) for other in chosen)
        yield (count * len(values)) ** 2


def _plan_media(
    config: ShapesConfig,
    media: Literal["video", "image"],
    count: int,
    shares: dict[FileDefect, float],
) -> list[MediaFile]:
    rng = random.Random(f"{config.seed} {media}")
    defects = _spread_file_defects(rng, count, shares)
    # Damaged files take no part in the balance of scenes, and hold no planted shots.
    sound = [number for number, defect in enumerate(defects) if defect is None]
    damaged = [number for number, defect in enumerate(defects) if defect in ("truncated", "no_index")]
    shots = dict(zip(sound, _plan_shots(rng, media, len(sound), planted=True), strict=True))
    shots |= dict(zip(damaged, _plan_shots(rng, media, len(damaged), planted=False), strict=True))
    files: list[MediaFile] = []
    for number, defect in enumerate(defects):
        if defect in ("duplicate", "near_duplicate"):
            files.append(_copy(rng, files, number, defect))
        else:
            files.append(_original(media, number, shots.get(number, ()), defect))
    return _rotate_two(files) if media == "video" else files


def _original(
    media: Literal["video", "image"], number: int, shots: tuple[Shot, ...], defect: FileDefect | None
) -> MediaFile:
    moving = media == "video"
    sizes = VIDEO_SIZES if moving else IMAGE_SIZES
    suffixes = (VIDEO_SUFFIXES if defect is None else (".mp4",)) if moving else IMAGE_SUFFIXES
    height, width = sizes[number % len(sizes)]
    return MediaFile(
        name=f"{media}-{number:04d}{suffixes[number % len(suffixes)]}",
        media=media,
        height=height,
        width=width,
        fps=FPS[number % len(FPS)] if moving else None,
        rotation_deg=0,
        shots=shots,
        defect=defect,
        copy_of=None,
    )


def _spread_file_defects(rng: random.Random, count: int, shares: dict[FileDefect, float]) -> list[FileDefect | None]:
    """One entry per file; every kind occurs at least once where that leaves half of the files sound."""
    planted: list[FileDefect] = []
    for defect, share in shares.items():
        planted += [defect] * max(1, round(share * count))
    planted = planted[: count // 2]
    # The first files are sound, so that copies have originals.
    first = min(3, count - len(planted))
    entries: list[FileDefect | None] = [*planted, *[None] * (count - len(planted) - first)]
    rng.shuffle(entries)
    return [None] * first + entries


def _plan_shots(
    rng: random.Random, media: Literal["video", "image"], num_files: int, *, planted: bool
) -> list[tuple[Shot, ...]]:
    """Shots of all files: sound ones dealt evenly over the grammar, defects spread among them."""
    moving = media == "video"
    lengths = [SHOTS_PER_VIDEO[index % len(SHOTS_PER_VIDEO)] if moving else 1 for index in range(num_files)]
    rng.shuffle(lengths)
    shares = SHOT_DEFECTS if moving else IMAGE_DEFECTS
    defects = _spread_shot_defects(rng, sum(lengths), shares if planted else {})
    deck = _Deck(rng, moving)
    files, position = [], 0
    for length in lengths:
        shots: list[Shot] = []
        previous: str | None = None
        for index in range(length):
            defect = defects[position + index]
            black_next = index + 1 < length and defects[position + index + 1] == "black"
            avoid = {previous} | ({"black"} if black_next else set())
            shot = _plan_shot(rng, deck, defect, avoid, moving)
            previous = shot.scene.background if shot.scene else "black"
            shots.append(shot)
        position += length
        files.append(tuple(shots))
    return files


def _spread_shot_defects(rng: random.Random, count: int, shares: dict[ShotDefect, float]) -> list[ShotDefect | None]:
    """One entry per shot, never two defects in a row."""
    entries: list[ShotDefect | None] = [None] * count
    places = list(range(1, count, 2))
    rng.shuffle(places)
    for defect, share in shares.items():
        for _ in range(max(1, round(share * count))):
            if places:
                entries[places.pop()] = defect
    return entries


def _plan_shot(
    rng: random.Random, deck: "_Deck", defect: ShotDefect | None, avoid: set[str | None], moving: bool
) -> Shot:
    frames = SHORT_SHOT_FRAMES if defect == "too_short" else SHOT_FRAMES
    num_frames = rng.randint(*frames) if moving else 1
    if defect is None:
        scene, staging = deck.deal(avoid)
        return Shot(scene, staging, num_frames, scene.caption, None)
    staging = draw_staging(rng, moving=moving)
    if defect == "black":
        return Shot(None, staging, num_frames, BLACK_CAPTION, defect)
    scene = rng.choice([scene for scene in all_scenes(moving=moving) if scene.background not in avoid])
    if defect == "static":
        # The caption claims the motion that the pixels do not show.
        return Shot(replace(scene, motion=None), replace(staging, travel=0.0), num_frames, scene.caption, defect)
    return Shot(scene, staging, num_frames, scene.caption, defect)


class _Deck:
    """Deals scenes so that each comes equally often, passing over backgrounds to avoid."""

    def __init__(self, rng: random.Random, moving: bool) -> None:
        self._rng, self._moving = rng, moving
        self._cards: list[Scene] = []
        self._dealt: dict[Scene, list[Staging]] = {}

    def deal(self, avoid: set[str | None]) -> tuple[Scene, Staging]:
        """Takes the first card whose background is free, and stages it unlike its former appearances."""
        while True:
            for card in self._cards:
                if card.background not in avoid:
                    self._cards.remove(card)
                    return card, self._stage(card)
            fresh = all_scenes(moving=self._moving)
            self._rng.shuffle(fresh)
            self._cards += fresh

    def _stage(self, scene: Scene) -> Staging:
        former = self._dealt.setdefault(scene, [])
        drawn = [draw_staging(self._rng, moving=self._moving) for _ in range(STAGING_DRAWS)]
        # The draw farthest from all former ones: a second take must not pass for a copy of the first.
        staging = max(drawn, key=lambda draw: min((abs(draw.across - take.across) for take in former), default=0.0))
        former.append(staging)
        return staging


def _copy(rng: random.Random, files: list[MediaFile], number: int, defect: FileDefect | None) -> MediaFile:
    """A copy of an earlier sound file that has no copy yet."""
    taken = {file.copy_of for file in files}
    originals = [
        file
        for file in files
        if file.defect is None and file.name not in taken and all(shot.defect is None for shot in file.shots)
    ]
    # The first file is always sound; with very few files it may have to serve again.
    original = rng.choice(originals or files[:1])
    suffix = original.name[original.name.rindex(".") :] if defect == "duplicate" else _recoded_suffix(original)
    return replace(original, name=f"{original.media}-{number:04d}{suffix}", defect=defect, copy_of=original.name)


def _recoded_suffix(original: MediaFile) -> str:
    return ".mp4" if original.media == "video" else ".jpg"


def _rotate_two(files: list[MediaFile]) -> list[MediaFile]:
    """Has two sound files without copies stored lying on their side, as telephones do."""
    copied = {file.copy_of for file in files}
    sound = [
        file.name for file in files if file.defect is None and file.name not in copied and file.name.endswith(".mp4")
    ]
    turns = dict(zip(sound[1::3], (90, 270), strict=False))
    return [replace(file, rotation_deg=turns.get(file.name, 0)) for file in files]
