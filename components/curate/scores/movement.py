"""What moves: flow from frame to frame, flow as Open-Sora 1.1 measures it, and what the camera does."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from components.curate.scores.base import Columns, Grey, Look, SampledScorer, ScoreInfo
from components.optical_flow import (
    MIN_FLOW_SIDE_PX,
    MOTION_LONG_SIDE_PX,
    REFERENCE_LONG_SIDE_PX,
    DenseFlow,
    bounded,
    motion_magnitude,
)

MOTION_STRIDE_FRAMES = 15
"""Steps that begin at 0, 15, 30, ...: as many odd as even ones, as drawn films repeat every other frame."""
FLOW_STEP_PX = 4
"""The flow is found on every fourth pixel and filled in between: the others say nothing more."""

FLOW_PLACES = (0, 10, 20, 30)
FLOW_SIZE = (320, 576)

CAMERA_LONG_SIDE_PX = 128
CAMERA_STRIDE_FRAMES = 15
STATIC_BELOW_PX = 1.0
ZOOM_OUT_BELOW, ZOOM_IN_ABOVE = 0.4, 0.6


class Motion(SampledScorer[float]):
    """One step from frame to frame in fifteen, at 128 pixels."""

    columns: ClassVar = (
        ScoreInfo(
            "motion",
            "2",
            f"Optical flow (DIS, on a picture at most {MOTION_LONG_SIDE_PX} px long) from one frame to the next, mean "
            "magnitude over pixels and one step in fifteen; none for a single frame.",
            f"px per frame of a picture {REFERENCE_LONG_SIDE_PX} px long",
        ),
    )

    def __init__(self) -> None:
        super().__init__()
        self._flow = DenseFlow()
        self._before: tuple[int, Grey] | None = None

    def wants(self, place: int) -> bool:
        """See `Scorer`."""
        return place % MOTION_STRIDE_FRAMES in (0, 1)

    def add(self, look: Look, place: int) -> None:
        """See `Scorer`."""
        grey = bounded(look.grey, MOTION_LONG_SIDE_PX)
        before, self._before = self._before, (look.number, grey)
        if before is None or before[0] != look.number - 1 or place % MOTION_STRIDE_FRAMES == 0:
            return
        flow = self._flow(before[1], grey)
        self.samples[look.number] = motion_magnitude(flow, max(grey.shape))

    def summary(self, start: int, end: int, last: Look | None) -> Columns:
        """See `Scorer`; the step into the first frame belongs to no clip."""
        return {"motion": self.samples.mean(start + 1, end)}


class Flow(SampledScorer[float]):
    """Four frames of every clip, at the analysis size."""

    columns: ClassVar = (
        ScoreInfo(
            "flow",
            "2",
            "As Open-Sora 1.1 defines it, with DIS instead of UniMatch: flow between frames 0, 10, 20 and 30 of the "
            "clip (or its last), mean absolute value over the three pairs, pixels and both components; none for a "
            "single frame.",
            f"px of a picture of {FLOW_SIZE[0]} x {FLOW_SIZE[1]}",
        ),
    )

    def __init__(self) -> None:
        super().__init__()
        self._flow = DenseFlow()
        self._before: tuple[int, Grey] | None = None

    def wants(self, place: int) -> bool:
        """See `Scorer`."""
        return place in FLOW_PLACES

    def add(self, look: Look, place: int) -> None:
        """See `Scorer`."""
        if place > 0 and self._before is not None:
            self.samples[look.number] = self._mean(self._before[1], look.grey)
        self._before = look.number, look.grey

    def summary(self, start: int, end: int, last: Look | None) -> Columns:
        """See `Scorer`; a pair of the last frame with itself counts as standing still."""
        if end - start < 2:
            return {"flow": None}
        pairs = len(FLOW_PLACES) - 1
        values = list(self.samples.within(start + 1, end).values())[-pairs:]
        if last is not None and self._before is not None and len(values) < pairs and self._before[0] < last.number:
            values.append(self._mean(self._before[1], last.grey))
        return {"flow": float(sum(values) / pairs)}

    def _mean(self, before: Grey, after: Grey) -> float:
        flow = np.abs(_sparse(self._flow(before, after))).mean(axis=(0, 1), dtype=np.float64)
        # The longer side lies along the 576 pixels: Open-Sora 1.1 turns upright pictures first.
        height, width = before.shape
        down, right = FLOW_SIZE if height <= width else FLOW_SIZE[::-1]
        return float((flow[0] * right / width + flow[1] * down / height) / 2)


class CameraMotion(SampledScorer[str]):
    """Every fifteenth frame, at 128 pixels."""

    columns: ClassVar = (
        ScoreInfo(
            "camera_motion",
            "2",
            "What the camera does, by Open-Sora 1.1's rules: flow (DIS instead of Farneback, on a picture at most "
            f"{CAMERA_LONG_SIDE_PX} px long) between frames {CAMERA_STRIDE_FRAMES} apart is still, zooms or points in "
            "one of four directions, and the clip is what most of its pairs are.",
        ),
    )
    stride: ClassVar = CAMERA_STRIDE_FRAMES

    def __init__(self) -> None:
        super().__init__()
        self._flow = DenseFlow()
        self._before: Grey | None = None

    def add(self, look: Look, place: int) -> None:
        """See `Scorer`."""
        grey = bounded(look.grey, CAMERA_LONG_SIDE_PX, MIN_FLOW_SIDE_PX)
        if place > 0 and self._before is not None:
            flow = _sparse(self._flow(self._before, grey)).astype(np.float64)
            height, width = look.picture.size
            flow *= (width / grey.shape[1], height / grey.shape[0])
            self.samples[look.number] = label_of_pair(flow, look.picture.size)
        self._before = grey

    def summary(self, start: int, end: int, last: Look | None) -> Columns:
        """See `Scorer`."""
        labels = list(self.samples.within(start + 1, end).values())
        return {"camera_motion": label_of_clip(labels) if end - start > 1 else None}


def _sparse(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H / 4, W / 4, 2) of (H, W, 2): the rest is filled in between anyway."""
    return flow[FLOW_STEP_PX // 2 :: FLOW_STEP_PX, FLOW_STEP_PX // 2 :: FLOW_STEP_PX]


def label_of_pair(flow: NDArray[np.float64], size: tuple[int, int]) -> str:
    """What the camera does between two frames.

    Args:
        flow: (H, W, 2) pixels of the whole picture to the right and down, at points that lie evenly over it.
        size: (height, width) of the whole picture.
    """
    rows, columns = flow.shape[:2]
    height, width = size
    right, down = flow[..., 0], flow[..., 1]
    if float(np.median(np.hypot(right, down))) < STATIC_BELOW_PX:
        return "static"
    y = ((np.arange(rows) + 0.5) / rows - 0.5)[:, None] * height
    x = ((np.arange(columns) + 0.5) / columns - 0.5)[None, :] * width
    outward = float((np.hypot(x + right, y + down) >= np.hypot(x, y)).mean())
    if outward < ZOOM_OUT_BELOW:
        return "zoom out"
    if outward > ZOOM_IN_ABOVE:
        return "zoom in"
    angle_deg = float(np.median(np.degrees(np.arctan2(down, right)) % 360))
    directions = ("pan left", "tilt up", "pan right", "tilt down")
    return directions[int(((angle_deg + 45) % 360) // 90)]


def label_of_clip(labels: list[str]) -> str:
    """The label of more than half of the pairs; without one, and without any pair, Open-Sora 1.1's words for it."""
    for label in set(labels):
        if labels.count(label) > len(labels) / 2:
            return label
    if "static" in labels:
        return "unknown"
    return "dynamic" if any(label.startswith("zoom") for label in labels) else "pan/tilt"
