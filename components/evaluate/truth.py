"""What the made world promised, read back from generated pixels."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import numpy as np

from components.media import Frames
from components.shapes.measure import measure, score
from components.shapes.world import Scene, all_scenes, draw_staging, parse_caption, render

NAMES = ("colour", "shape", "motion", "background", "all")


def draw_scenes(count: int, seed: int, *, moving: bool) -> list[Scene]:
    """`count` scenes in shuffled order, every scene once before any comes again."""
    rng = random.Random(f"scenes {seed} {moving}")
    scenes: list[Scene] = []
    while len(scenes) < count:
        round_of_all = all_scenes(moving=moving)
        rng.shuffle(round_of_all)
        scenes += round_of_all
    return scenes[:count]


def first_frames(scenes: Sequence[Scene], seed: int, num_frames: int, height: int, width: int) -> Frames:
    """The picture each scene starts from, freshly drawn; (N, height, width, 3) uint8."""
    rng = random.Random(f"first frames {seed}")
    drawn = [render(scene, draw_staging(rng, moving=True), num_frames, height, width)[0] for scene in scenes]
    return np.stack(drawn)


def verdict_of(task: str, frames: Frames, prompt: str, given: Collection[int]) -> dict[str, bool]:
    """Which parts of a prompt of the grammar the pixels fulfil.

    Of an extension `motion` is read from the generated frames alone: that they go on as they were begun. A still does
    not move, and a loop cannot move one way, so neither is asked to; frames to interpolate between show most of it by
    themselves, so nothing is read from them. Other prompts have no verdict.

    Args:
        task: that the clip was generated for.
        frames: (T, H, W, 3) uint8.
        prompt: the text it was generated from.
        given: numbers of the frames that were given.
    """
    scene = parse_caption(prompt)
    if scene is None or task == "interpolate":
        return {}
    verdict = score(frames, prompt)
    if task == "loop":
        return {name: verdict[name] for name in ("colour", "shape", "background")}
    if task == "text_to_image":
        return {name: verdict[name] for name in NAMES if name != "motion"}
    if task in ("extend_forward", "extend_backward"):
        generated = [number for number in range(len(frames)) if number not in given]
        verdict["motion"] = measure(frames[generated]).motion == scene.motion
        verdict["all"] = all(verdict[name] for name in NAMES if name != "all")
    return verdict
