"""Grammar and renderer: every caption says what its picture shows."""

import random

import numpy as np
import pytest

from components.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Scene,
    Staging,
    all_scenes,
    draw_staging,
    parse_caption,
    render,
    shape_coverage,
)


@pytest.mark.parametrize("moving", [True, False])
def test_captions_are_read_back(moving: bool) -> None:
    scenes = all_scenes(moving=moving)
    assert len(set(scenes)) == (216 if moving else 54)
    assert [parse_caption(scene.caption) for scene in scenes] == scenes


def test_the_grammar_reads_like_a_sentence() -> None:
    scene = Scene("red", "circle", "left", "white")
    assert scene.caption == "a red circle moves left on a white background"
    assert parse_caption("  A red circle  moves LEFT on a white background. ") == scene
    assert parse_caption("a red circle on a white background") == Scene("red", "circle", None, "white")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red circle moves sideways on a white background",
        "a purple circle moves left on a white background",
        "a red circle moves left on a white background and a dog",
    ],
)
def test_other_sentences_are_not_read(text: str) -> None:
    assert parse_caption(text) is None


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("size", [(96, 96), (48, 84), (84, 48)])
def test_the_shape_moves_as_told_and_stays_inside(motion: str, size: tuple[int, int]) -> None:
    rng = random.Random(motion)
    for _ in range(10):
        frames = render(Scene("red", "square", motion, "white"), draw_staging(rng, moving=True), 24, *size)
        red = frames[..., 1] < 100
        assert red.any(axis=(1, 2)).all()
        assert not (red[:, 0].any() or red[:, -1].any() or red[:, :, 0].any() or red[:, :, -1].any())
        areas = red.sum(axis=(1, 2))
        assert areas.max() - areas.min() <= 0.2 * areas.max()
        rows, columns = np.indices(size)
        y, x = ((red * place).sum(axis=(1, 2)) / areas for place in (rows, columns))
        steps = np.stack([np.diff(x), np.diff(y)], axis=1) @ MOTIONS[motion]
        assert (steps > 0).mean() > 0.9
        # Eight frames, every second one, show a way of at least a quarter of the short side.
        assert steps.sum() * 14 / 23 > 0.25 * min(size)


def test_a_still_has_no_travel() -> None:
    staging = draw_staging(random.Random(0), moving=False)
    assert staging.travel == 0
    frames = render(Scene("blue", "circle", None, "grey"), staging, 3, 40, 40)
    np.testing.assert_array_equal(frames[0], frames[2])


def test_outlines_are_antialiased_and_areas_exact() -> None:
    x = np.arange(64)[None, :] + 0.5 - 31.3
    y = np.arange(64)[:, None] + 0.5 - 32.1
    for shape, share in zip(SHAPES, (np.pi / 4, 1.0, 0.5), strict=True):
        coverage = shape_coverage(shape, x, y, 30.0)
        assert coverage.sum() == pytest.approx(share * 30**2, rel=0.01)
        assert ((coverage > 0) & (coverage < 1)).any()
    with pytest.raises(ValueError, match="unknown shape"):
        shape_coverage("star", x, y, 30.0)


def test_colours_are_those_of_the_palette() -> None:
    frame = render(Scene("cyan", "square", None, "black"), Staging(0.3, 0.0, 0.0, 0.0), 1, 48, 48)[0]
    assert tuple(frame[24, 24]) == COLOURS["cyan"]
    assert tuple(frame[0, 0]) == BACKGROUNDS["black"]
