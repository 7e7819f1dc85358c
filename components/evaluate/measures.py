"""What is read from the pixels of one generated clip: kept frames, seams, movement, flicker, in-between frames.

Clips are (T, H, W, 3) uint8 RGB. A truth (True or False) becomes a share, a number a mean.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from components.media import Frames
from components.optical_flow import MOTION_LONG_SIDE_PX, DenseFlow, bounded, motion_magnitude

Values = dict[str, float | bool]

LARGEST_DB = 60.0
"""Equal pictures count as this far apart, so that means stay finite."""
CONTINUOUS_BELOW = 2.0
"""A seam of less than twice the usual step between frames passes for none."""
STEP_FLOOR = 0.5
"""Grey levels added to both steps: a seam of a clip that stands still is not a division by nothing."""


def decibels(picture: Frames, other: Frames) -> float:
    """Peak signal-to-noise ratio of two pictures or clips of one shape, at most `LARGEST_DB`."""
    error = float(np.mean((picture.astype(np.float64) - other.astype(np.float64)) ** 2))
    return LARGEST_DB if error == 0 else min(LARGEST_DB, 10 * math.log10(255.0**2 / error))


def kept(frames: Frames, given: Mapping[int, Frames], rebuilt: Mapping[int, Frames]) -> Values:
    """How well given frames came back, beside what the autoencoder alone makes of them; of the worst of them.

    Args:
        frames: the generated clip.
        given: pictures (H, W, 3) by the number of the frame they were given as.
        rebuilt: the same pictures, encoded and decoded.
    """
    differences = {
        number: decibels(frames[number], picture) - decibels(rebuilt[number], picture)
        for number, picture in given.items()
    }
    worst = min(differences, key=lambda number: differences[number])
    return {"frame_kept_db": differences[worst], "frame_psnr_db": decibels(frames[worst], given[worst])}


def seam(frames: Frames, given: Collection[int]) -> Values:
    """The largest step between a given and a generated frame, against the mean step between generated ones.

    A step is the mean absolute difference of two frames in a row. Nothing when no two generated frames follow
    each other.
    """
    clip = frames.astype(np.float64)
    steps = np.abs(np.diff(clip, axis=0)).mean(axis=(1, 2, 3))
    is_given = [number in given for number in range(len(frames))]
    inner = [step for number, step in enumerate(steps) if not is_given[number] and not is_given[number + 1]]
    joints = [step for number, step in enumerate(steps) if is_given[number] != is_given[number + 1]]
    if not inner or not joints:
        return {}
    ratio = (max(joints) + STEP_FLOOR) / (float(np.mean(inner)) + STEP_FLOOR)
    return {"seam": float(ratio), "continuous": bool(ratio < CONTINUOUS_BELOW)}


def closure(frames: Frames) -> Values:
    """How alike the last frame and the first are, in dB."""
    return {"closes_db": decibels(frames[-1], frames[0])}


def in_between(frames: Frames, truth: Frames, given: Collection[int]) -> Values:
    """Frames between given ones against the truth, beside blending their given neighbours.

    Args:
        frames: the generated clip.
        truth: the clip that the given frames were taken from.
        given: numbers of the given frames; what lies before the first or after the last does not count.
    """
    numbers = sorted(given)
    wanted, blended = [], []
    for left, right in pairwise(numbers):
        for number in range(left + 1, right):
            share = (number - left) / (right - left)
            wanted.append(number)
            blended.append((1 - share) * truth[left].astype(np.float64) + share * truth[right].astype(np.float64))
    if not wanted:
        return {}
    drawn = decibels(frames[wanted], truth[wanted])
    simple = decibels(np.rint(np.stack(blended)).astype(np.uint8), truth[wanted])
    return {
        "over_blending_db": drawn - simple, "beats_blending": drawn > simple,
        "psnr_db": drawn, "blending_psnr_db": simple,
    }  # fmt: skip


def movement(frames: Frames) -> Values:
    """Motion, consistency over time and flicker of a clip of two frames or more.

    `motion_magnitude` is curation's `motion`, over every step. `consistency_db` compares each frame with the next one
    moved back along the flow between them (the warping error of Lai et al. 2018, arXiv:1808.00449, as a ratio).
    `flicker` is how far the mean light of a frame lies from the middle of its neighbours', in grey levels.
    """
    if len(frames) < 2:
        return {}
    flow_between = DenseFlow()
    greys = [
        bounded(np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8), MOTION_LONG_SIDE_PX) for frame in frames
    ]
    magnitudes, agreements = [], []
    for before, after in pairwise(greys):
        flow = flow_between(before, after)
        magnitudes.append(motion_magnitude(flow, max(before.shape)))
        agreements.append(decibels(before, _moved_back(after, flow)))
    light = np.array([grey.mean() for grey in greys])
    values: Values = {
        "motion_magnitude": float(np.mean(magnitudes)),
        "consistency_db": float(np.mean(agreements)),
    }
    if len(frames) > 2:
        values["flicker"] = float(np.abs(light[1:-1] - (light[:-2] + light[2:]) / 2).mean())
    return values


def _moved_back(after: NDArray[np.uint8], flow: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`after` as it would look had nothing moved: every pixel fetched from where the flow says it went."""
    height, width = after.shape
    x = np.arange(width, dtype=np.float32)[None, :] + flow[:height, :width, 0]
    y = np.arange(height, dtype=np.float32)[:, None] + flow[:height, :width, 1]
    moved = cv2.remap(after, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)
