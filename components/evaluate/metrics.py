"""What every score means: its unit, which way is better, and the one that speaks for its task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One column of the scores.

    Attributes:
        meaning: a sentence.
        unit: of the number.
        better: which way is better; "neither" for what is only told.
    """

    meaning: str
    unit: str
    better: Literal["higher", "lower", "neither"]


METRICS: dict[str, Metric] = {
    "colour": Metric("The shape has the colour that the prompt asked for.", "share of clips", "higher"),
    "shape": Metric("The shape is the one that the prompt asked for.", "share of clips", "higher"),
    "motion": Metric(
        "The shape moves as the prompt asked for; of an extension, in its new frames alone.", "share of clips", "higher"
    ),
    "background": Metric("The background is the one that the prompt asked for.", "share of clips", "higher"),
    "all": Metric("All of these at once.", "share of clips", "higher"),
    "frame_kept_db": Metric(
        "PSNR of the worst given frame against the picture, less that of the autoencoder's own reconstruction: 0 when "
        "nothing is lost but what the autoencoder loses.",
        "dB",
        "higher",
    ),
    "frame_psnr_db": Metric("PSNR of the worst given frame against the picture.", "dB", "higher"),
    "seam": Metric(
        "Largest step between a given and a generated frame, over the mean step between generated ones; 1 is seamless.",
        "ratio",
        "lower",
    ),
    "continuous": Metric("Clips whose seam is below 2.", "share of clips", "higher"),
    "closes_db": Metric("PSNR of the last frame against the first, at most 60.", "dB", "higher"),
    "over_blending_db": Metric(
        "PSNR of the frames in between against the real ones, less that of blending the given neighbours.",
        "dB",
        "higher",
    ),
    "beats_blending": Metric("Clips that come closer to the real frames than blending.", "share of clips", "higher"),
    "psnr_db": Metric("PSNR of the frames in between against the real ones.", "dB", "higher"),
    "blending_psnr_db": Metric("The same for blending the given neighbours.", "dB", "neither"),
    "motion_magnitude": Metric(
        "Optical flow from frame to frame, mean length; what curation calls motion.",
        "px of a 256 px picture",
        "neither",
    ),
    "consistency_db": Metric(
        "PSNR of each frame against the next one, moved back along the flow between them.", "dB", "higher"
    ),
    "flicker": Metric(
        "How far the mean light of a frame lies from the middle of its neighbours'.", "grey levels", "lower"
    ),
    "frechet_distance": Metric(
        "Squared Frechet distance to real clips in the extractor's features; falls with more samples, so compare equal "
        "numbers only.",
        "",
        "lower",
    ),
    "text_match": Metric("Agreement of CLIP's features of text and frames.", "scaled cosine", "higher"),
}
"""By name, in the order of the report."""

HEADLINES: dict[str, tuple[str, ...]] = {
    "text_to_image": ("all", "text_match"),
    "text_to_video": ("all", "text_match", "consistency_db"),
    "image_to_video": ("frame_kept_db",),
    "loop": ("continuous",),
    "extend_forward": ("continuous",),
    "extend_backward": ("continuous",),
    "connect": ("continuous",),
    "interpolate": ("over_blending_db",),
}
"""The first of these that was measured speaks for its task."""


def headline(task: str, measured: dict[str, object]) -> str | None:
    """Name of the score that speaks for a task, of those that were measured."""
    return next((name for name in HEADLINES.get(task, ()) if name in measured), None)
