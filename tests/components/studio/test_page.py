"""The page in a real Chromium: drawn, uploaded, compared, cancelled, and told off in whole sentences."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from components import video
from components.generation.files import read_settings
from tests.components.studio.tiny_run import NUM_FRAMES, SIDE_PX, scene_frames

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.timeout(900)  # three servers start for the first test, beside whatever else runs
PROMPT = "a red circle moves left on a white background"
DONE_MS = 120_000


def ask(page: Page, prompt: str = PROMPT, **fields: object) -> None:
    """Fill in the form and press the button."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_test_id("draw").click()


def choose(page: Page, field: str, option: str) -> None:
    """Pick from a drop-down list."""
    page.get_by_test_id(field).click()
    page.get_by_role("option", name=option, exact=True).click()


def panels(page: Page, count: int = 1, state: str = "done"):
    """The panels of the stage, once that many have come to that state."""
    found = page.locator(f"[data-testid=panel][data-state={state}]")
    expect(found).to_have_count(count, timeout=DONE_MS)
    return found


def played(film) -> dict[str, float]:
    """What a player says once it has shown something else than its first moment."""
    film.evaluate(
        """film => new Promise((done, failed) => {
            film.ontimeupdate = () => film.currentTime > 0 && done();
            setTimeout(() => failed(`state ${film.readyState}, ${film.error?.message}`), 30000);
        })"""
    )
    return film.evaluate(
        "film => ({ready: film.readyState, duration: film.duration, width: film.videoWidth, height: film.videoHeight})"
    )


def newest(out: Path) -> Path:
    """The file made last."""
    return max((path for path in out.iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime_ns)


def test_text_to_video_plays_and_says_how_it_was_made(page: Page, studio):
    expect(page.get_by_test_id("checkpoint1")).to_contain_text("kinoflow 1 (champion)")
    expect(page.get_by_test_id("measures")).to_have_text(f"{SIDE_PX} × {SIDE_PX} pixels, 0.7 s")
    ask(page, Seed=7)
    panel = panels(page).first
    facts = played(panel.locator("video"))
    assert facts["ready"] >= 2 and facts["duration"] == pytest.approx(NUM_FRAMES / 6, abs=0.1)
    assert (facts["width"], facts["height"]) == (SIDE_PX, SIDE_PX)
    expect(panel.get_by_test_id("drawn-prompt")).to_have_text(PROMPT)
    for told in ("Seed7", "Steps3", "Guidance2", f"Frames{NUM_FRAMES}", "Tasktext to video"):
        expect(panel.get_by_test_id("settings")).to_contain_text(told)
    expect(panel.get_by_test_id("lineage")).to_contain_text(studio.checkpoints[0])
    expect(panel.get_by_test_id("lineage")).to_contain_text("c" * 12)  # the dataset's digest
    assert panel.locator("video").evaluate("film => getComputedStyle(film).imageRendering") == "pixelated"

    with page.expect_download() as download:
        panel.get_by_test_id("download").click()
    assert Path(download.value.path()).read_bytes() == newest(studio.out).read_bytes()
    settings = read_settings(newest(studio.out))
    assert (settings["prompt"], settings["seed"]) == (PROMPT, 7)

    page.get_by_label("Prompt", exact=True).fill("something else")
    page.get_by_test_id("card").first.click()
    page.get_by_test_id("reuse").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    expect(page.get_by_label("Seed", exact=True)).to_have_value("7")


def test_the_same_seed_again_gives_the_same_file_and_the_dice_another(page: Page, studio):
    ask(page, Seed=11)
    panels(page)
    first = newest(studio.out)
    page.get_by_test_id("draw").click()
    expect(page.locator("[data-testid=panel][data-state=done]")).to_have_count(0)
    panels(page)
    assert newest(studio.out) != first and newest(studio.out).read_bytes() == first.read_bytes()
    page.get_by_test_id("dice").click()
    expect(page.get_by_label("Seed", exact=True)).not_to_have_value("11")


def test_image_to_video_begins_with_the_picture_that_was_uploaded(page: Page, studio, tmp_path: Path):
    picture, words = tmp_path / "first.png", tmp_path / "words.png"
    video.write_image(picture, scene_frames()[0])
    words.write_text("not a picture")
    choose(page, "task", "Image to video")
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("Image to video needs a first frame, a last frame, or both")
    upload = page.get_by_test_id("upload-first").locator("input[type=file]")
    upload.set_input_files(words)
    expect(page.get_by_role("alert").filter(has_text="'words.png' is neither a picture nor a video")).to_be_visible()
    upload.set_input_files(picture)
    expect(page.locator(".slot .preview img").first).to_have_attribute("src", re.compile("^data:image/png"))
    page.get_by_test_id("draw").click()
    panel = panels(page).first
    assert played(panel.locator("video"))["ready"] >= 2
    expect(panel.get_by_test_id("settings")).to_contain_text("image to video")
    made = newest(studio.out)
    assert read_settings(made)["references"][0]["path"] == "first.png"
    shown = next(iter(video.decode_frames(made))).astype(float)
    given = scene_frames()[0].astype(float)
    assert np.abs(shown - given).mean() < 40  # as well as four principal components can
    uploads = studio.out / "uploads"
    assert len(list(uploads.iterdir())) == 1  # what was refused is gone


def test_two_checkpoints_are_compared_on_one_seed(page: Page, studio):
    page.get_by_test_id("mode").get_by_text("Compare").click()
    choose(page, "checkpoint2", "tiny · stage1")
    ask(page, Seed=5)
    both = panels(page, 2)
    for side, checkpoint in enumerate(studio.checkpoints):
        panel = both.nth(side)
        assert played(panel.locator("video"))["ready"] >= 2
        expect(panel.get_by_test_id("settings")).to_contain_text("Seed5")
        expect(panel.get_by_test_id("lineage")).to_contain_text(checkpoint)
    expect(page.get_by_test_id("together")).to_be_visible()


def test_mistakes_are_sentences(page: Page, studio):
    ask(page, "   ")
    expect(page.get_by_role("alert")).to_contain_text("The prompt is empty; describe what to show.")
    ask(page, Steps="")
    expect(page.get_by_role("alert").filter(has_text="Steps is empty; give a number.")).to_be_visible()
    ask(page, "word " * 10_000, Steps=3)
    expect(page.get_by_role("alert").filter(has_text="10,000 words")).to_be_visible()
    page.get_by_text("More", exact=True).click()
    choose(page, "method", "DPM-Solver++ (fast)")
    ask(page)
    expect(panels(page, 1, "failed").get_by_test_id("failure")).to_contain_text("trained as a flow")
    page.get_by_test_id("mode").get_by_text("Compare").click()
    choose(page, "checkpoint2", "kinoflow 1 (champion)")
    ask(page)
    expect(page.get_by_role("alert").filter(has_text="Both sides are the same checkpoint")).to_be_visible()


def test_one_is_drawn_at_a_time_and_both_can_be_cancelled(page: Page):
    page.get_by_test_id("mode").get_by_text("Compare").click()
    choose(page, "checkpoint2", "tiny · stage1")
    ask(page, Steps=1000)
    expect(page.get_by_test_id("progress").first).to_have_text(
        re.compile(r"Step \d+ of 1000, .* left"), timeout=DONE_MS
    )
    expect(page.get_by_test_id("progress").nth(1)).to_have_text("Waiting; 1 before it")
    expect(page.get_by_test_id("queued")).to_have_count(2)
    page.get_by_test_id("cancel").nth(1).click()
    panels(page, 1, "cancelled")
    page.get_by_test_id("cancel").click()
    panels(page, 2, "cancelled")
