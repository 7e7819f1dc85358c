"""Compare checkpoints: what a fixed grid of prompts becomes at every stage of every run, beside what differs.

The result is one page that holds everything (videos, curves, settings, scores, lineage), published as a prefix.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components import manifest, progress, store
from components.comparison.contestants import Contestant as Contestant
from components.comparison.contestants import read_contestant as read_contestant
from components.comparison.grid import cells_of, draw_grid
from components.comparison.page import write_page
from components.comparison_config import GridConfig
from components.errors import KinoflowError
from components.tracking import Tracker

KIND, PAGE, GRID = "comparison", "comparison.html", "grid"
MAX_FOLDER_CHARS = 40


@dataclass(frozen=True)
class Comparison:
    """What was made.

    Attributes:
        page: URI of the page.
        drawn: cells that had to be drawn; the others were there already.
        cells: of all checkpoints together.
    """

    page: str
    drawn: int
    cells: int


def compare(
    contestants: Sequence[Contestant], grid: GridConfig | None, out: str, *, tracker: Tracker | None = None
) -> Comparison:
    """Draw the grid for every stage of every contestant and publish the page.

    Args:
        contestants: from `read_contestant`; differences are told from the first to each of the others.
        grid: what to draw; no videos when absent.
        out: URI of the prefix to publish.
        tracker: gets the page and the videos as artifacts below `comparison/`.

    Raises:
        KinoflowError: nothing to compare, two of one name, or a checkpoint that cannot be drawn from.
    """
    if not contestants:
        raise KinoflowError("There is nothing to compare; name a run, a checkpoint or a version of a model.")
    if len({each.folder for each in contestants}) != len(contestants):
        raise KinoflowError("Two of the things to compare have one name; give each a name of its own.")
    inputs = {f"{each.name}/{stage.name}": stage.digest for each in contestants for stage in each.stages}
    recorded = {"grid": grid.model_dump(mode="json") if grid else None}
    with (
        tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch,
        manifest.publish(out, KIND, config=recorded, inputs=inputs) as publication,
    ):
        folder = Path(scratch)
        drawn = _draw(contestants, grid, folder) if grid else 0
        page = publication.directory / PAGE
        write_page(page, contestants, grid, folder)
        cells = 0
        for each, column in _columns(contestants) if grid else []:
            for path in sorted((folder / each / column).iterdir()):
                target = publication.directory / GRID / each / column / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                cells += 1
        if tracker is not None:
            _track(tracker, contestants, grid, publication.directory)
    return Comparison(store.join(out, PAGE), drawn, cells)


def _draw(contestants: Sequence[Contestant], grid: GridConfig, folder: Path) -> int:
    stages = sum(len(each.stages) for each in contestants)
    drawn = 0
    with progress.task("compare", stages * len(cells_of(grid))) as bar:
        for each in contestants:
            for stage in each.stages:

                def advance(count: int, note: str = f"{each.name} {stage.name}") -> None:
                    bar.advance(count, note)

                drawn += draw_grid(stage.checkpoint, grid, folder / each.folder / stage.name, on_cell=advance)
    return drawn


def _columns(contestants: Sequence[Contestant]) -> list[tuple[str, str]]:
    return [(each.folder, stage.name) for each in contestants for stage in each.stages]


def _track(tracker: Tracker, contestants: Sequence[Contestant], grid: GridConfig | None, folder: Path) -> None:
    """The page, and each video under a name that a person finds it by."""
    tracker.log_artifact(folder / PAGE, KIND)
    if grid is None:
        return
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        for name, stage in _columns(contestants):
            for number, cell in enumerate(cells_of(grid), 1):
                source = folder / GRID / name / stage / cell.file
                words = "-".join("".join(c if c.isalnum() else " " for c in cell.prompt.lower()).split())
                named = Path(scratch) / f"{number:02d}-{words[:MAX_FOLDER_CHARS]}-seed-{cell.seed}{source.suffix}"
                shutil.copyfile(source, named)
                where = f"{name}/{stage}" if len(contestants) > 1 else stage
                tracker.log_artifact(named, f"{KIND}/{where}")
