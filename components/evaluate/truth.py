"""What the made world promised, read back from generated pixels."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from components.evaluate.pictures import Sample
from components.shapes.measure import psnr
from components.shapes.world import Scene, all_scenes, draw_staging, render

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


def first_frames(scenes: Sequence[Scene], seed: int, num_frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """The picture each scene starts from, freshly drawn; (N, height, width, 3) uint8."""
    rng = random.Random(f"first frames {seed}")
    drawn = [render(scene, draw_staging(rng, moving=True), num_frames, height, width)[0] for scene in scenes]
    return np.stack(drawn)


def summarise(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Share of samples that show what was asked, by task and attribute; `n` is the number of samples."""
    by_task: dict[str, list[dict[str, bool]]] = defaultdict(list)
    for sample in samples:
        if sample.verdict is not None:
            by_task[sample.task].append(sample.verdict)
    return {
        task: {"n": len(verdicts)} | {name: fmean(verdict[name] for verdict in verdicts) for name in NAMES}
        for task, verdicts in by_task.items()
    }


def first_frame_fidelity(samples: Sequence[Sample], rebuilt: NDArray[np.uint8]) -> dict[str, float]:
    """How well given first frames survive, beside what the autoencoder alone makes of them, in dB.

    Args:
        samples: image-to-video samples with their references.
        rebuilt: (N, H, W, 3), the references encoded and decoded.
    """
    kept = [(sample, again) for sample, again in zip(samples, rebuilt) if sample.reference is not None]
    return {
        "n": len(kept),
        "psnr_db": fmean(
            psnr(sample.frames[0], sample.reference) for sample, _ in kept if sample.reference is not None
        ),
        "autoencoder_psnr_db": fmean(
            psnr(again, sample.reference) for sample, again in kept if sample.reference is not None
        ),
    }
