"""A studio of one's own: two tiny checkpoints, the real command serving them, and a browser without a network."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient

from components.config import EvaluateConfig, SamplingConfig
from pipelines.config import load_run_config
from tests.components.studio.chromium import FLAGS, find_chromium
from tests.components.studio.tiny_run import NUM_FRAMES, SIDE_PX, train_tiny, write_summary
from tests.conftest import S3Server
from tests.s3_process import s3_environment

REPO = Path(__file__).resolve().parents[3]
MODEL = "kinoflow"
START_S = 600  # imports take a while on a busy machine


@dataclass(frozen=True)
class Studio:
    """A running studio.

    Attributes:
        url: of the page.
        out: folder of finished files.
        checkpoints: the two it offers, the better one first.
    """

    url: str
    out: Path
    checkpoints: tuple[str, str]


@pytest.fixture(scope="session")
def tiny_checkpoints(s3_endpoint: str) -> list[str]:
    """URIs of the checkpoints of two stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, value in s3_environment(s3_endpoint).items():
            patch.setenv(name, value)
        return train_tiny(S3Server(s3_endpoint).bucket())


@pytest.fixture(scope="session")
def studio(
    tiny_checkpoints: list[str], s3_endpoint: str, mlflow_endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Studio]:
    """`kinoflow studio` in a project with one finished run, whose last checkpoint is registered as the champion."""
    project = tmp_path_factory.mktemp("project")
    (project / ".kinoflow").mkdir()
    evaluate = EvaluateConfig(
        num_frames=NUM_FRAMES, height=SIDE_PX, width=SIDE_PX,
        sampling=SamplingConfig(num_inference_steps=3, guidance_scale=2.0, saved_fps=6.0),
    )  # fmt: skip
    config = load_run_config("demo").model_copy(update={"evaluate": evaluate})
    write_summary(project / "runs" / "tiny", tiny_checkpoints, config)
    register(mlflow_endpoint, tiny_checkpoints[-1])
    command = [sys.executable, "-m", "pipelines.cli", "studio", "--port", "0", "--max-upload", "1"]
    environment = {**os.environ, **s3_environment(s3_endpoint), "MLFLOW_TRACKING_URI": mlflow_endpoint}
    environment["PYTHONPATH"] = str(REPO)
    log = project / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=project, env=environment, stdout=file, stderr=file)
    try:
        url = wait_for_address(process, log)
        yield Studio(url, project / "runs" / "studio", (tiny_checkpoints[1], tiny_checkpoints[0]))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")  # while it is open, this thread has a running event loop
def browser() -> Iterator[object]:
    """A headless Chromium that can resolve no name, so that only this machine can be reached."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium here; on Debian: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser, studio: Studio) -> Iterator[object]:
    """The studio's page in a tab of its own; whatever it asks for has to be on its own server."""
    tab = browser.new_page(viewport={"width": 1360, "height": 1000})
    tab.set_default_timeout(60_000)
    asked: list[str] = []
    wrong: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("websocket", lambda socket: asked.append(socket.url))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    tab.goto(studio.url)
    tab.get_by_test_id("draw").wait_for()
    yield tab
    tab.close()
    elsewhere = {url for url in asked if urlsplit(url).scheme not in ("data", "blob")}
    assert {urlsplit(url).netloc for url in elsewhere} == {urlsplit(studio.url).netloc}
    assert wrong == []


def register(tracking_uri: str, checkpoint: str) -> None:
    """Make the checkpoint the champion."""
    client = MlflowClient(tracking_uri)
    if not client.search_registered_models(f"name = '{MODEL}'"):
        client.create_registered_model(MODEL)
    version = client.create_model_version(MODEL, checkpoint, tags={"kinoflow.checkpoint": checkpoint})
    client.set_registered_model_alias(MODEL, "champion", version.version)


def wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address the command prints once it serves."""
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if found:
            return found[0]
        time.sleep(0.2)
    raise RuntimeError(f"the studio did not start: {log.read_text()}")
