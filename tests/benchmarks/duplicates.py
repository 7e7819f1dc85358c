"""Duplicates among a million clips: those that look the same, and those that show the same."""

from __future__ import annotations

from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray

from components.curate.duplicates import near_duplicate_groups
from components.curate.fingerprint import NUM_WINDOWS, SIDE_PX, WINDOW_BYTES
from components.curate.semantic import similar_groups
from tests.benchmarks.measuring import Figure, Settings

NUM_CLIPS, NUM_DESCRIBED, TOY_CLIPS = 1_000_000, 50_000, 500
WIDTH = 512
"""Of CLIP's features (ViT-B)."""
MIN_SIMILARITY = 0.95
COPIED_SHARE = 0.02
AT_ONCE = 20_000

Prints = NDArray[np.uint8]


def run(settings: Settings) -> list[Figure]:
    """Seconds of either, once: they do not repeat themselves for a median."""
    count, described = (TOY_CLIPS, TOY_CLIPS) if settings.toy else (NUM_CLIPS, NUM_DESCRIBED)
    clock = process_time if settings.cpu_time else perf_counter
    prints, length_s = make_prints(count)
    began_s = clock()
    group = near_duplicate_groups(prints, length_s)
    figures = [Figure(f"groups of clips that look the same, {count:,} clips", clock() - began_s, "s")]
    assert (group >= 0).sum() >= count * COPIED_SHARE
    del prints
    features = make_features(described)
    began_s = clock()
    label = similar_groups(features, MIN_SIMILARITY)
    took_s = clock() - began_s
    assert len(np.unique(label)) < described
    per_pair_ns = 1e9 * took_s / (described * (described - 1) / 2)
    return [
        *figures,
        Figure(f"groups of clips that show the same, {described:,} clips", took_s, "s"),
        Figure("of these, each pair of clips", per_pair_ns, "ns"),
    ]


def make_prints(count: int) -> tuple[Prints, NDArray[np.float64]]:
    """Fingerprints of soft pictures that change in time, some of them copied; and lengths in seconds."""
    rng = np.random.default_rng(0)
    places = (np.arange(SIDE_PX) + 0.5) / SIDE_PX
    waves = np.stack([np.cos(np.pi * places * k) for k in range(4)]).astype(np.float32)
    fall = 1 / (1 + np.add.outer(np.arange(4), np.arange(4)))
    mixed = np.array([[1, 1, 1], [0.3, 0, -0.3], [0.15, -0.3, 0.15]])
    times = np.linspace(-1, 1, NUM_WINDOWS)[:, None, None, None]
    prints = np.empty((count, NUM_WINDOWS, WINDOW_BYTES), np.uint8)
    for start in range(0, count, AT_ONCE):
        some = min(AT_ONCE, count - start)
        first, drift = rng.normal(size=(2, some, 1, 4, 4, 3))
        amounts = ((first + 0.5 * drift * times) * fall[..., None]).astype(np.float32)
        pictures = np.einsum("ntabc,ay,bx,cd->ntyxd", amounts, waves, waves, mixed, optimize=True)
        pictures *= np.exp(rng.normal(3.2, 0.5, (some, 1, 1, 1, 1)))
        pictures += rng.normal(110, 35, (some, 1, 1, 1, 1))
        prints[start : start + some] = np.clip(pictures, 0, 255).reshape(some, NUM_WINDOWS, WINDOW_BYTES)
    length_s = np.clip(np.exp(rng.normal(1.6, 0.7, count)), 0.5, 60.0)
    copies, originals = np.split(rng.permutation(count)[: 2 * int(count * COPIED_SHARE)], 2)
    noise = rng.integers(-2, 3, (len(copies), NUM_WINDOWS, WINDOW_BYTES))
    prints[copies] = np.clip(prints[originals] + noise, 0, 255)
    length_s[copies] = length_s[originals]
    return prints, length_s


def make_features(count: int) -> NDArray[np.float16]:
    """Features as spread as those of pictures are: around one direction, more in some than in others."""
    rng = np.random.default_rng(1)
    spread = 1 / np.arange(1, WIDTH + 1) ** 0.7
    middle = rng.normal(size=WIDTH)
    middle *= 0.7 / np.linalg.norm(middle)
    apart = rng.normal(size=(count, WIDTH)) * spread
    features = middle + 0.7 * apart / np.linalg.norm(apart, axis=1, keepdims=True)
    copies, originals = np.split(rng.permutation(count)[: 2 * int(count * COPIED_SHARE)], 2)
    features[copies] = features[originals] + 0.002 * rng.normal(size=(len(copies), WIDTH))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
