"""The trained text detector of the extra `text`, itself: text over video frames is seen, and nothing else."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from components import manifest, tables
from components.config import CurateConfig, IngestConfig
from components.curate import curate, curate_part, merge
from components.curate.analysed import analysis_digest
from components.curate.scores import neural_text
from components.curate.scores.clip import ModelUnusable
from components.curate.text import GRID
from components.ingest import ingest
from components.shapes.world import all_scenes, draw_staging, render
from components.video import write_video
from tests.components.curate.test_shots import textured_shots

Pixels = NDArray[np.uint8]
NEURAL = CurateConfig.model_validate({"text_detector": "neural", "workers": 1, "captions": {"required": False}})


def moving_ground(num_frames: int = 30, height: int = 180, width: int = 320) -> Pixels:
    """A blurred texture that drifts: no edge of it is a letter."""
    noise = np.random.default_rng(2).integers(0, 256, (height, width + 2 * num_frames, 3)).astype(np.uint8)
    smooth = np.asarray(cv2.GaussianBlur(noise, (0, 0), 5))
    contrast = np.clip((smooth.astype(np.float32) - 128) * 4 + 110, 0, 255).astype(np.uint8)
    return np.stack([contrast[:, 2 * index : 2 * index + width] for index in range(num_frames)])


def subtitled(frames: Pixels, text: str, size_px: int) -> Pixels:
    """Frames with a line of text near the bottom, in the font that Pillow brings along."""
    drawn = []
    for frame in frames:
        picture = Image.fromarray(frame)
        font = ImageFont.load_default(size_px)
        place = frame.shape[1] // 2, frame.shape[0] - 2 * size_px
        ImageDraw.Draw(picture).text(
            place, text, font=font, fill="white", stroke_fill="black", stroke_width=1, anchor="mm"
        )
        drawn.append(np.asarray(picture))
    return np.stack(drawn)


@pytest.mark.parametrize("size_px", [12, 18, 30])
def test_a_subtitle_is_seen_where_it_stands(size_px: int) -> None:
    plain = moving_ground(1)[0]
    (line,) = subtitled(plain[None], "This text is burnt in.", size_px)
    empty, mask = (neural_text.text_mask(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in (plain, line))
    assert empty.shape == GRID and not empty.any()
    rows = np.flatnonzero(mask.any(axis=1))
    expected = GRID[0] * (plain.shape[0] - 2 * size_px) / plain.shape[0]
    assert rows.min() <= expected <= rows.max() + 1
    assert 0.005 < mask.mean() < 0.25


def test_figures_are_no_text() -> None:
    rng = random.Random(0)
    for scene in list(all_scenes(moving=False))[::5]:
        picture = render(scene, draw_staging(rng, moving=False), 1, 216, 384)[0]
        assert not neural_text.text_mask(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)).any(), scene
    # One letter as high as the picture is a figure, too.
    large = np.full((216, 384), 40, np.uint8)
    cv2.putText(large, "S", (120, 180), cv2.FONT_HERSHEY_SIMPLEX, 6, 230, 24, cv2.LINE_AA)
    assert not neural_text.text_mask(large).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (33, 47)])
def test_odd_pictures(shape: tuple[int, int]) -> None:
    assert not neural_text.text_mask(np.zeros(shape, np.uint8)).any()


def test_the_table_says_what_measured_it_and_parts_agree(tmp_path: Path) -> None:
    frames = {"plain": moving_ground(), "text": subtitled(moving_ground(), "Subscribe to this channel", 24)}
    frames["flash"] = np.concatenate([frames["text"][:5], frames["plain"][5:]])
    (tmp_path / "in").mkdir()
    for name, pixels in frames.items():
        write_video(tmp_path / "in" / f"{name}.mp4", pixels, 24)
    ingest(IngestConfig(), str(tmp_path / "in"), f"{tmp_path}/objects", f"{tmp_path}/videos")
    curate(NEURAL, f"{tmp_path}/videos", f"{tmp_path}/objects", f"{tmp_path}/clips")
    table = tables.read(tmp_path / "clips" / "clips.parquet", tables.CLIPS).sort("path")
    reasons = dict(table.select(pl.col("path").str.split("/").list.last(), "reason").iter_rows())
    assert reasons["text.mp4"] == "text"
    assert reasons["plain.mp4"] != "text" and reasons["flash.mp4"] != "text"
    weights = neural_text.model_path()
    told = set(table["text_detector"])
    assert told == {f"rapidocr {neural_text.metadata.version('rapidocr')} {weights.name} {neural_text.digest()[:16]}"}
    assert manifest.load(f"{tmp_path}/clips").inputs["text_detector"] == manifest.sha256_file(weights)
    curate_part(NEURAL, f"{tmp_path}/videos", f"{tmp_path}/objects", f"{tmp_path}/p/shots-00000-of-00001", 0, 1)
    merge(NEURAL, f"{tmp_path}/videos", f"{tmp_path}/objects", f"{tmp_path}/p", 1, f"{tmp_path}/merged")
    assert (tmp_path / "merged/clips.parquet").read_bytes() == (tmp_path / "clips/clips.parquet").read_bytes()


def test_what_the_classical_one_measured_is_not_taken_for_it() -> None:
    classical = NEURAL.model_copy(update={"text_detector": "classical"})
    assert analysis_digest(NEURAL) != analysis_digest(classical)


def test_without_the_extra_curation_ends_in_one_sentence_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "a.mp4", textured_shots([12]), 24)
    ingest(IngestConfig(), str(tmp_path / "in"), f"{tmp_path}/objects", f"{tmp_path}/videos")
    neural_text.digest.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    wanted = re.escape("install the extra (pip install 'kinoflow[text]') or choose text_detector: classical.")
    with pytest.raises(ModelUnusable, match=wanted):
        curate(NEURAL, f"{tmp_path}/videos", f"{tmp_path}/objects", f"{tmp_path}/clips")
    assert not (tmp_path / "analysed").exists()
