"""The page that shows a comparison: everything in one file, so that it can be sent and looked at anywhere."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.comparison.contestants import Contestant, StageResult
from components.comparison.curves import COLOURS, draw_curves
from components.comparison.differences import (
    ScoreChange,
    Setting,
    scores_between,
    settings_between,
    unrecorded,
)
from components.comparison.grid import Cell, cells_of
from components.comparison_config import GridConfig

TEMPLATE = "page.html.j2"
MEDIA_TYPES = {".mp4": "video/mp4", ".png": "image/png"}


@dataclass(frozen=True)
class Pair:
    """The first contestant against one of the others."""

    old: Contestant
    new: Contestant
    settings: list[Setting]
    scores: list[ScoreChange]
    facts: list[tuple[str, str, str]]
    silent: list[str]

    @property
    def chosen(self) -> list[Setting]:
        """Settings that somebody has made different."""
        return [each for each in self.settings if not each.other_code]

    @property
    def headline(self) -> str:
        """What differs, in one sentence."""
        if not self.chosen:
            return f"{self.old.name} and {self.new.name} have the same settings."
        if len(self.chosen) == 1:
            only = self.chosen[0]
            where = ", ".join(only.places)
            return f"They differ in one setting: {only.name} ({where}), {only.old} against {only.new}."
        return f"They differ in {len(self.chosen)} settings."

    @property
    def outcome(self) -> str:
        """What it led to, in one sentence."""
        if not self.scores:
            return "No score was measured for both."
        counts = Counter(change.verdict for change in self.scores)
        sure = " and ".join(f"{counts[word]} {word}" for word in ("better", "worse") if counts[word])
        told = f"Of {len(self.scores)} scores of {self.new.name}, {sure or 'none is better or worse'} than of "
        perhaps = " and ".join(f"{counts[f'perhaps {word}']} {word}" for word in ("better", "worse")
                               if counts[f"perhaps {word}"])  # fmt: skip
        more = f"; {perhaps} by a number whose uncertainty is not known" if perhaps else ""
        return f"{told}{self.old.name} by more than chance{more}."


@dataclass(frozen=True)
class Row:
    """One cell of the grid for every checkpoint."""

    cell: Cell
    shown: list[tuple[str, str]]  # (media type, base64)


def write_page(path: Path, contestants: Sequence[Contestant], grid: GridConfig | None, folder: Path) -> None:
    """Write the page.

    Args:
        path: of the page.
        contestants: differences are told from the first to each of the others.
        grid: what was drawn; none when absent.
        folder: holds `<contestant>/<stage>/<cell file>`.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    columns = [(each, stage) for each in contestants for stage in each.stages]
    first = contestants[0]
    page = environment.get_template(TEMPLATE).render(
        title=" and ".join(each.name for each in contestants) if len(contestants) > 1 else f"Stages of {first.name}",
        contestants=contestants,
        colours=COLOURS,
        pairs=[_pair(first, other) for other in contestants[1:]],
        columns=columns,
        rows=_rows(columns, grid, folder) if grid else [],
        grid=grid,
        curves=draw_curves(contestants),
        lineage_names=list(dict.fromkeys(name for each in contestants for name in each.lineage)),
    )
    path.write_text(page, encoding="utf-8")


def _pair(old: Contestant, new: Contestant) -> Pair:
    facts = [
        (name, old.lineage.get(name, ""), new.lineage.get(name, ""))
        for name in ("dataset", "code", "started from")
        if old.lineage.get(name) != new.lineage.get(name)
    ]
    return Pair(old, new, settings_between(old, new), scores_between(old, new), facts, unrecorded(old, new))


def _rows(columns: Sequence[tuple[Contestant, StageResult]], grid: GridConfig, folder: Path) -> list[Row]:
    return [
        Row(cell, [_embedded(folder / each.folder / stage.name / cell.file) for each, stage in columns])
        for cell in cells_of(grid)
    ]


def _embedded(path: Path) -> tuple[str, str]:
    return MEDIA_TYPES[path.suffix], base64.b64encode(path.read_bytes()).decode()
