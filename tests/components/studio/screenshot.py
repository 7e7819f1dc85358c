"""Makes docs/studio.png anew: `python -m tests.components.studio.screenshot --checkpoint demo` beside a finished run.

Draws a few videos in the real page with a real Chromium, and takes its picture. Needs /usr/bin/chromium.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.components.studio.chromium import FLAGS, find_chromium
from tests.components.studio.conftest import wait_for_address

PROMPTS = {
    "a green square moves right on a black background": 3,
    "a yellow triangle moves up on a grey background": 7,
    "a blue circle moves down on a white background": 12,
    "a magenta square moves up on a grey background": 5,
    "a red square moves left on a white background": 21,
}
SIZE = {"width": 1360, "height": 900}


def main() -> None:
    """Start the studio in the current folder, draw, take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--out", type=Path, default=Path("docs/studio.png"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        command = [sys.executable, "-m", "pipelines.cli", "studio", "--port", "0"]
        command += ["--checkpoint", given.checkpoint, "--out", str(Path(scratch) / "made")]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            take(wait_for_address(process, log), given.out)
        finally:
            process.terminate()
            process.wait(timeout=60)


def take(url: str, out: Path) -> None:
    """Draw the prompts and write the picture."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium(), headless=True, args=FLAGS)
        page = browser.new_page(viewport=SIZE, device_scale_factor=1)
        page.goto(url)
        for prompt, seed in PROMPTS.items():
            draw(page, prompt, seed)
        page.mouse.move(5, 5)
        page.wait_for_timeout(1200)
        with tempfile.TemporaryDirectory() as scratch:
            whole = Path(scratch) / "page.png"
            page.screenshot(path=whole)
            Image.open(whole).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)
        browser.close()


def draw(page: Page, prompt: str, seed: int) -> None:
    """Ask for one video and wait for it."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_test_id("draw").click()
    done = page.locator("[data-testid=panel][data-state=done]").get_by_test_id("settings")
    expect(done).to_contain_text(re.compile(rf"Seed{seed}\D"), timeout=300_000)


if __name__ == "__main__":
    main()
