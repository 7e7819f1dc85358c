"""Videos and the page of a comparison as MLflow's own pages show them, in a real browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from components.config import TrackingConfig
from components.encoding import write_video
from components.tracking import open_tracker

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser's driver is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"]
PATIENCE_MS = 120_000  # MLflow's pages load slowly on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]


@pytest.fixture
def page() -> Iterator[sync_api.Page]:
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1400, "height": 900})
        opened.set_default_timeout(PATIENCE_MS)
        yield opened
        browser.close()


def artifact_address(server: str, folder: Path) -> str:
    """Log a video and a page that embeds it as a comparison does; address of the folder in MLflow's pages."""
    from mlflow import MlflowClient

    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    frames = [np.broadcast_to(np.roll(ramp, 8 * step)[None, :, None], (64, 64, 3)).copy() for step in range(8)]
    write_video(folder / "moving.mp4", np.stack(frames), 6.0)
    with open_tracker(TrackingConfig(run_name=f"seen-{uuid4().hex[:8]}"), task="compare", params={}) as tracker:
        tracker.log_artifact(folder / "moving.mp4", "comparison")
        run_id = tracker.run_id(60)
    experiment = MlflowClient(server).get_run(run_id).info.experiment_id
    return f"{server}/#/experiments/{experiment}/runs/{run_id}/artifacts/comparison"


def test_a_video_plays_in_mlflows_artifact_viewer(mlflow_server: str, tmp_path: Path, page: sync_api.Page) -> None:
    page.goto(f"{artifact_address(mlflow_server, tmp_path)}/moving.mp4")
    page.wait_for_selector("video", state="attached")
    page.wait_for_function("document.querySelector('video').readyState >= 2")
    shown = page.evaluate("(v => [v.videoWidth, v.videoHeight, v.error])(document.querySelector('video'))")
    assert shown == [64, 64, None]
    page.evaluate("document.querySelector('video').muted = true; document.querySelector('video').play()")
    page.wait_for_function("document.querySelector('video').currentTime > 0.2")
