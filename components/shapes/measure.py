"""The checker: reads colour, shape, motion and background from pixels, and credits nothing it cannot see.

Made for renders and for blurred or noisy reconstructions of them, 32 px and up. A picture that is not
one shape on a plain background measures as None throughout.
"""

import math
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from components.errors import KinoflowError
from components.shapes.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, parse_caption, shape_coverage

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float64]

BACKGROUND_TOLERANCE = 42.0
"""Largest distance, in grey levels per channel, at which a pixel still counts as background colour."""
MIN_PLAIN_BORDER = 0.8
MIN_CONTRAST = 60.0
MIN_FRAMES_SEEN = 0.75
MIN_FRAMES_AGREEING = 0.6
MIN_MAIN_BLOB = 0.8
MIN_SATURATION = 0.3
MAX_HUE_ERROR_DEG = 26.0
MIN_TEMPLATE_OVERLAP = 0.78
BLURS = (0.0, 0.07, 0.14, 0.2)
"""Amounts of blur tried on the shape templates, in sides of the shape."""
BOX_SHARE = {"circle": math.pi / 4, "square": 1.0, "triangle": 0.5}
"""Share of its bounding box that a shape fills."""
MIN_TRAVEL = 0.12
MIN_STRAIGHTNESS = 0.6


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the pixels show; None where they do not show it.

    Attributes:
        colour_confidence: 1 at the palette's hue, 0 at the edge of tolerance.
        shape_confidence: overlap (intersection over union) with the best template.
        motion_confidence: net way divided by the way gone, 1 for a straight uniform motion.
        background_confidence: share of border pixels in the background's colour.
        travel: (x, y) net way of the shape from first to last frame, in short sides; y points down.
        frames_seen: share of frames in which one shape stands out.
    """

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    background: str | None = None
    colour_confidence: float = 0.0
    shape_confidence: float = 0.0
    motion_confidence: float = 0.0
    background_confidence: float = 0.0
    travel: tuple[float, float] = (0.0, 0.0)
    frames_seen: float = 0.0


@dataclass(frozen=True, slots=True)
class _Sighting:
    """The shape in one frame.

    Attributes:
        mask: soft mask in [0, 1] of the part of the frame around the shape.
        left, top: where that part begins, in pixels.
        x, y: centroid within it, in pixels.
        colour: median RGB of the shape's core.
    """

    mask: Plane
    left: int
    top: int
    x: float
    y: float
    colour: Plane


def measure(frames: Pixels) -> Measurement:
    """Reads a video or a still.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be (T, H, W, 3) uint8, got {frames.dtype} {frames.shape}")
    level, plain_share = _border(frames)
    background = _nearest_background(level)
    if background is None or plain_share < MIN_PLAIN_BORDER:
        return Measurement(background_confidence=plain_share)
    found = [_sight(frame, level) for frame in frames]
    sightings = [(number, sighting) for number, sighting in enumerate(found) if sighting is not None]
    frames_seen = len(sightings) / len(frames)
    if frames_seen < MIN_FRAMES_SEEN:
        return Measurement(background=background, background_confidence=plain_share, frames_seen=frames_seen)
    colour, colour_confidence = _name_colour(np.stack([sighting.colour for _, sighting in sightings]))
    shape, shape_confidence = _name_shape([sighting for _, sighting in sightings])
    centres = np.array([[number, seen.left + seen.x, seen.top + seen.y] for number, seen in sightings])
    motion, motion_confidence, travel = _name_motion(centres, len(frames), min(frames.shape[1:3]))
    return Measurement(
        colour,
        shape,
        motion,
        background,
        colour_confidence,
        shape_confidence,
        motion_confidence,
        plain_share,
        travel,
        frames_seen,
    )


def score(frames: Pixels, caption: str) -> dict[str, bool]:
    """Says which parts of a caption the pixels fulfil, and under "all" whether every one.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        caption: a sentence of the world's grammar; one without motion asks for a shape that stands still.

    Raises:
        KinoflowError: when the caption is not of the grammar.
    """
    scene = parse_caption(caption)
    if scene is None:
        raise KinoflowError(
            f"the shape checker cannot score {caption!r}: write it like 'a red circle moves left on a white background'"
        )
    wanted, seen = asdict(scene), measure(frames)
    result = {name: getattr(seen, name) == value for name, value in wanted.items()}
    if scene.motion is None:
        result["motion"] = seen.motion is None and seen.shape is not None
    return result | {"all": all(result.values())}


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays of one shape, in dB; infinite for equal ones."""
    if a.shape != b.shape:
        raise ValueError(f"psnr compares arrays of one shape, got {a.shape} and {b.shape}")
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255.0**2 / error)) if error > 0 else math.inf


def _border(frames: Pixels) -> tuple[Plane, float]:
    """Median colour of the frames' rims, and the share of their pixels near it."""
    rim = max(1, min(frames.shape[1:3]) // 16)
    edge = np.ones(frames.shape[1:3], bool)
    edge[rim:-rim, rim:-rim] = False
    pixels = frames[:, edge].astype(np.float64)
    level: Plane = np.median(pixels.reshape(-1, 3), axis=0)
    near = np.abs(pixels - level).max(axis=-1) < BACKGROUND_TOLERANCE
    return level, float(near.mean())


def _nearest_background(level: Plane) -> str | None:
    def distance(name: str) -> float:
        return float(np.abs(np.array(BACKGROUNDS[name]) - level).max())

    name = min(BACKGROUNDS, key=distance)
    return name if distance(name) < BACKGROUND_TOLERANCE else None


def _sight(frame: Pixels, level: Plane) -> _Sighting | None:
    """Finds the one blob that stands out from the background, or None when there is none or several."""
    distance = np.linalg.norm(frame.astype(np.float64) - level, axis=-1)
    contrast = float(np.percentile(distance, 98.5))
    if contrast < MIN_CONTRAST:
        return None
    mask = np.clip(distance / contrast, 0.0, 1.0)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((mask > 0.5).astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    areas = stats[1:, cv2.CC_STAT_AREA]
    main = 1 + int(np.argmax(areas))
    if areas.max() < MIN_MAIN_BLOB * areas.sum() or areas.max() > 0.5 * mask.size:
        return None
    near_main = cv2.dilate((labels == main).astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2) > 0
    mask = np.where(near_main & (mask > 0.15), mask, 0.0)
    colour = np.median(frame[mask > 0.8].astype(np.float64), axis=0)
    left, top, width, height, _ = stats[main].tolist()
    margin = 4 + max(width, height) // 2
    top, left = max(0, top - margin), max(0, left - margin)
    mask = mask[top : top + height + 2 * margin, left : left + width + 2 * margin]
    total = mask.sum()
    x = float(mask.sum(axis=0) @ (np.arange(mask.shape[1]) + 0.5) / total)
    y = float(mask.sum(axis=1) @ (np.arange(mask.shape[0]) + 0.5) / total)
    return _Sighting(mask, left, top, x, y, colour)


def _hue_saturation(colour: Plane) -> tuple[float, float]:
    """Hue in degrees and saturation of an RGB colour (HSV)."""
    pixel = (colour / 255).astype(np.float32).reshape(1, 1, 3)
    hue, saturation, _ = cv2.cvtColor(pixel, cv2.COLOR_RGB2HSV)[0, 0].tolist()
    return hue, saturation


def _name_colour(colours: Plane) -> tuple[str | None, float]:
    """Names the colour nearest in hue to the median over frames, if most frames agree; greys have no name."""
    name, confidence = _nearest_colour(np.median(colours, axis=0))
    agreeing = np.mean([_nearest_colour(colour)[0] == name for colour in colours])
    return (name, confidence) if agreeing >= MIN_FRAMES_AGREEING else (None, 0.0)


def _nearest_colour(colour: Plane) -> tuple[str | None, float]:
    hue, saturation = _hue_saturation(colour)
    if saturation < MIN_SATURATION:
        return None, 0.0

    def error_deg(name: str) -> float:
        turn = abs(hue - _hue_saturation(np.array(COLOURS[name], np.float64))[0])
        return min(turn, 360 - turn)

    name = min(COLOURS, key=error_deg)
    confidence = max(0.0, 1 - error_deg(name) / MAX_HUE_ERROR_DEG)
    return (name if confidence > 0 else None), confidence


def _name_shape(sightings: list[_Sighting]) -> tuple[str | None, float]:
    """Names the shape whose drawing, at the blob's own area and centroid, overlaps the masks best in most frames."""
    overlaps = np.array([[_template_overlap(sighting, shape) for shape in SHAPES] for sighting in sightings])
    typical = np.median(overlaps, axis=0)
    best = int(np.argmax(typical))
    agreeing = np.mean(overlaps.argmax(axis=1) == best)
    sure = typical[best] >= MIN_TEMPLATE_OVERLAP and agreeing >= MIN_FRAMES_AGREEING
    return (SHAPES[best] if sure else None), float(typical[best])


def _template_overlap(sighting: _Sighting, shape: str) -> float:
    """Best soft intersection over union of the mask with a shape, over a few amounts of blur."""
    area = float(sighting.mask.sum())
    size_px = math.sqrt(area / BOX_SHARE[shape])
    # A triangle's centroid lies a sixth of its height below the middle of its bounding box.
    centre_y = sighting.y - (size_px / 6 if shape == "triangle" else 0.0)
    height, width = sighting.mask.shape
    x = np.arange(width, dtype=np.float64) + np.float64(0.5 - sighting.x)
    y = np.arange(height, dtype=np.float64)[:, None] + np.float64(0.5 - centre_y)
    template = shape_coverage(shape, x, y, size_px)
    best = 0.0
    for blur in BLURS:
        drawn = cv2.GaussianBlur(template, (0, 0), blur * size_px) if blur else template
        union = float(np.maximum(drawn, sighting.mask).sum())
        best = max(best, float(np.minimum(drawn, sighting.mask).sum()) / union)
    return best


def _name_motion(centres: Plane, num_frames: int, short_px: int) -> tuple[str | None, float, tuple[float, float]]:
    """Names a straight motion along one axis.

    Args:
        centres: (N, 3) rows of frame number, x, y in pixels.
        num_frames: frames in the video, seen or not.
        short_px: short side of the picture.
    """
    if len(centres) < 2:
        return None, 0.0, (0.0, 0.0)
    way = np.diff(centres[:, 1:], axis=0)
    slope = np.polyfit(centres[:, 0], centres[:, 1:], 1)[0]
    travel = slope * (num_frames - 1) / short_px
    gone = float(np.linalg.norm(way, axis=1).sum())
    net = float(np.linalg.norm(centres[-1, 1:] - centres[0, 1:]))
    straightness = net / gone if gone > 0 else 0.0
    direction = max(MOTIONS, key=lambda name: float(np.dot(MOTIONS[name], travel)))
    main = float(np.dot(MOTIONS[direction], travel))
    side = float(np.abs(travel).min())
    moved = main >= MIN_TRAVEL and main >= 2 * side and straightness >= MIN_STRAIGHTNESS
    x, y = travel.tolist()
    return (direction if moved else None), straightness, (x, y)
