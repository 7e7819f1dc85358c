"""How much of the picture is covered by text that stays, as a trained detector sees it.

The detector is PP-OCR's (DBNet), whose weights lie in the wheel of `rapidocr`; ONNX Runtime runs it, and nothing is
fetched. Text recognition is not used.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from components import manifest
from components.clip_model import ModelUnusable
from components.curate.scores.base import Columns, Grey, Look, SampledScorer, ScoreInfo
from components.curate.scores.text_overlay import FIRST_PLACES, MIN_PRESENCE, STRIDE_FRAMES, TextOverlay
from components.curate.text import GRID, LINE_HEIGHT_SHARE

PACKAGE, RUNTIME = "rapidocr", "onnxruntime"
DETECTOR_PATTERN = "*_det_*.onnx"
MULTIPLE_PX = 32
"""The network halves the picture five times."""
MIN_PROBABILITY, MIN_BOX_PROBABILITY, UNCLIP_RATIO = 0.3, 0.6, 1.6
"""Of a pixel and of a box on average, and how much smaller than the text the network was taught boxes. PP-OCR takes
boxes from 0.5 on; between that and 0.6 films gave animals, no letters."""
MAX_HEIGHT_SHARE = LINE_HEIGHT_SHARE[1]
"""Of the short side, as for the classical detector: a large figure in front of a plain ground is seen as one letter."""
SCALE = 8
"""Boxes are drawn at so many pixels a cell."""


class NeuralTextOverlay(SampledScorer[Grey]):
    """The frames that the classical detector looks at, through a network."""

    columns: ClassVar = (
        *TextOverlay.columns,
        ScoreInfo("text_detector", "1", "Which trained detector measured text_share; none for the classical one."),
    )

    def __init__(self) -> None:
        super().__init__()
        self._identity = identity()
        load_detector()

    def wants(self, place: int) -> bool:
        """See `Scorer`."""
        return place in FIRST_PLACES or place % STRIDE_FRAMES == 0

    def add(self, look: Look, place: int) -> None:
        """See `Scorer`."""
        self.samples[look.number] = look.large_grey

    def summary(self, start: int, end: int, last: Look | None) -> Columns:
        """See `Scorer`."""
        pictures = list(self.samples.within(start, end).values())
        share = lasting_share([text_mask(picture) for picture in pictures]) if pictures else 0.0
        return {"text_share": share, "text_detector": self._identity}


def lasting_share(masks: list[Grey]) -> float:
    """Share of the picture that holds text in at least `MIN_PRESENCE` of the pictures, of which there is one."""
    return float((np.sum(masks, axis=0, dtype=np.int64) >= MIN_PRESENCE * len(masks)).mean())


def text_mask(grey: Grey) -> Grey:
    """Cells of a coarse grid over a picture of which text covers at least a half.

    Args:
        grey: (H, W) uint8 luma.

    Returns:
        `GRID` of 0 and 1.
    """
    drawn = np.zeros((GRID[0] * SCALE, GRID[1] * SCALE), np.uint8)
    for box in text_boxes(grey):
        corners = box * (drawn.shape[1] / grey.shape[1], drawn.shape[0] / grey.shape[0])
        cv2.fillConvexPoly(drawn, np.rint(corners).astype(np.int32), 255)
    cells = cv2.resize(drawn, GRID[::-1], interpolation=cv2.INTER_AREA)
    return (np.asarray(cells) >= 128).astype(np.uint8)


def text_boxes(grey: Grey) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(n, 4, 2) corners (x, y) of lines of text in pixels; what is too high for a line is a figure, not text.

    Args:
        grey: (H, W) uint8 luma.
    """
    session, read_boxes = load_detector()
    height, width = (max(MULTIPLE_PX, round(side / MULTIPLE_PX) * MULTIPLE_PX) for side in grey.shape)
    resized = cv2.resize(grey, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    pixels = np.broadcast_to(resized / 127.5 - 1.0, (1, 3, height, width))
    (probability,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(pixels)})
    boxes, _ = read_boxes(probability, grey.shape)
    corners = np.asarray(boxes, np.float64).reshape(-1, 4, 2)
    sides = np.linalg.norm(corners[:, :2] - corners[:, 1:3], axis=2)
    is_line = sides.min(axis=1, initial=np.inf) <= MAX_HEIGHT_SHARE * min(grey.shape)
    return np.asarray(corners[is_line])


@cache
def load_detector() -> tuple[Any, Any]:
    """The network, on one thread so that sums do not depend on a machine's cores, and what makes boxes of its output.

    Raises:
        ModelUnusable: the extra is not installed, or holds no detector.
    """
    path = model_path()
    import onnxruntime
    from rapidocr.ch_ppocr_det.utils import DBPostProcess

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    read_boxes = DBPostProcess(
        thresh=MIN_PROBABILITY, box_thresh=MIN_BOX_PROBABILITY, unclip_ratio=UNCLIP_RATIO, use_dilation=True
    )
    return session, read_boxes


@cache
def digest() -> str:
    """SHA-256 (hex) of the weights."""
    return manifest.sha256_file(model_path())


def identity() -> str:
    """Package, version, file and SHA-256 (16 hex digits) of the weights, as the clips table has it."""
    path = model_path()
    return f"{PACKAGE} {metadata.version(PACKAGE)} {path.name} {digest()[:16]}"


def model_path() -> Path:
    """The detector's file in its package.

    Raises:
        ModelUnusable: the extra is not installed, or holds no detector.
    """
    if find_spec(PACKAGE) is None or find_spec(RUNTIME) is None:
        raise ModelUnusable(
            "curate.text_detector is 'neural', and its detector is not installed; install the extra "
            "(pip install 'kinoflow[text]') or choose text_detector: classical."
        )
    found = sorted(Path(str(resources.files(PACKAGE))).glob(f"models/{DETECTOR_PATTERN}"))
    if not found:
        raise ModelUnusable(
            f"{PACKAGE} {metadata.version(PACKAGE)} brings no text detector along; install the version that the "
            "extra names (pip install 'kinoflow[text]')."
        )
    return found[0]
