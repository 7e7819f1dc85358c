"""The page about the clips: it says what the table says, with pictures, and needs nothing else."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from components import manifest, store, tables
from components.config import CurateConfig, CurationRules, IngestConfig
from components.curate import curate
from components.curate.report import write_report
from components.ingest import ingest
from components.video import write_video
from tests.components.curate.test_shots import textured_shots

CONFIG = CurateConfig(workers=1, rules=CurationRules(min_motion=0.05))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Curated: two sound videos, a black one, a static one, one with a strange name, a broken one."""
    root = tmp_path_factory.mktemp("run")
    videos = root / "videos"
    videos.mkdir()
    sound = textured_shots([14, 16], seed=1)
    named = {"a": sound, "b": textured_shots([20], seed=2), "<b>&\"'": textured_shots([20], seed=3)}
    named |= {"black": np.zeros_like(sound), "static": np.repeat(textured_shots([1], seed=5), 20, axis=0)}
    for name, frames in named.items():
        write_video(videos / f"{name}.mp4", frames, 24)
        (videos / f"{name}.txt").write_text(f"video {name}", encoding="utf-8")
    (videos / "broken.mp4").write_bytes(b"broken")
    config = IngestConfig(source_name="<web>", licence="CC0-1.0")
    ingest(config, str(videos), f"{root}/objects", f"{root}/ingest")
    curate(CONFIG, f"{root}/ingest", f"{root}/objects", f"{root}/curate")
    return root


class Page(HTMLParser):
    """What a page shows and refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]

    def handle_data(self, data: str) -> None:
        self.words += f"{data} "


def test_the_page_tells_and_shows_the_ledger(run: Path) -> None:
    text = (run / "curate/report.html").read_text(encoding="utf-8")
    page = Page(text)
    words = " ".join(page.words.split())
    facts = manifest.load(f"{run}/curate").facts
    assert f"source files {facts['sources']} 100.0 %" in words
    assert f"kept {facts['kept']}" in words
    for slug in ("black", "static", "not_media"):
        assert re.search(rf"{slug} 1 (shots|files)", words), slug
    assert "is below min_motion 0.05." in words
    assert "<web>" in words
    assert "CC0-1.0" in words
    assert "<b>&\"'.mp4 at 0.0 s" in words
    assert "sidecar_txt" in words
    assert page.tags.count("svg") >= 6
    assert "min_motion 0.05" in words
    assert page.references
    assert all(reference.startswith("data:image/jpeg;base64,") for reference in page.references)
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace("http-equiv", "")
    pictures = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in page.references]
    assert all(max(picture.size) == 96 for picture in pictures)
    assert any(picture.getextrema() == ((0, 0), (0, 0), (0, 0)) for picture in pictures)


def test_the_same_clips_give_the_same_page_and_lost_objects_leave_pictures_out(run: Path, tmp_path: Path) -> None:
    videos = tables.read(run / "ingest/videos.parquet", tables.VIDEOS)
    clips = tables.read(run / "curate/clips.parquet", tables.CLIPS)
    again, without = tmp_path / "again.html", tmp_path / "without.html"
    write_report(again, CONFIG, videos, clips, f"{run}/objects")
    assert again.read_bytes() == (run / "curate/report.html").read_bytes()
    key = clips.filter(pl.col("path") == "static.mp4")["object_key"][0]
    (tmp_path / "objects").mkdir()
    for item in store.list_objects(f"{run}/objects"):
        if item.key != key:
            store.upload(run / "objects" / item.key, f"{tmp_path}/objects/{item.key}")
    write_report(without, CONFIG, videos, clips, f"{tmp_path}/objects")
    assert len(Page(without.read_text()).references) == len(Page(again.read_text()).references) - 1


def test_a_table_of_nothing_but_failures_has_a_page(run: Path, tmp_path: Path) -> None:
    videos = tables.read(run / "ingest/videos.parquet", tables.VIDEOS)
    clips = tables.read(run / "curate/clips.parquet", tables.CLIPS)
    for number, part in enumerate((clips.filter(pl.col("outcome") == "rejected"), clips.clear())):
        path = tmp_path / f"{number}.html"
        write_report(path, CONFIG, videos, part, f"{run}/objects")
        assert "svg" not in Page(path.read_text(encoding="utf-8")).tags
