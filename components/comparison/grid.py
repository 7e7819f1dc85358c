"""The cells of the grid: drawn once for each checkpoint, kept beside its run, and read again the next time."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue, ValidationError

from components import layout, manifest, store
from components.comparison_config import GridConfig
from components.encoding import write_video
from components.generation import Request, generate, load_bundle
from components.media import write_image
from components.stage_grid_config import GridTask

logger = logging.getLogger(__name__)
KIND = "grid"
KEY_CHARS = 20


@dataclass(frozen=True)
class Cell:
    """One prompt drawn with one seed as one task.

    Attributes:
        key: names what is drawn and how; equal for every checkpoint.
        name: of the file without the key, for people.
    """

    task: GridTask
    prompt: str
    seed: int
    key: str
    file: str


def cells_of(grid: GridConfig) -> list[Cell]:
    """Rows of the grid in the order in which people read them."""
    how = grid.model_dump(mode="json", include={"num_frames", "height", "width", "sampling"})
    cells = []
    for prompt in grid.prompts:
        for task in grid.tasks:
            for seed in grid.seeds:
                what: dict[str, JsonValue] = {**how, "task": task, "prompt": prompt, "seed": seed}
                key = manifest.digest_of(what)[:KEY_CHARS]
                is_still = task == "text_to_image" or grid.num_frames == 1
                cells.append(Cell(task, prompt, seed, key, f"{key}.{'png' if is_still else 'mp4'}"))
    return cells


def grid_uri(checkpoint: str) -> str:
    """Where the cells of `root/stage/step` are kept: root/grids/stage/step."""
    root, *names = checkpoint.rstrip("/").rsplit("/", 2)
    return store.join(root, layout.GRIDS, *names) if len(names) == 2 else layout.beside(checkpoint, layout.GRIDS)


def kept_grid(checkpoint: str) -> GridConfig | None:
    """The grid that was last drawn of a checkpoint; None where there is none."""
    try:
        return GridConfig.model_validate(manifest.load(grid_uri(checkpoint)).config)
    except (manifest.ManifestError, ValidationError):
        return None


def draw_grid(checkpoint: str, grid: GridConfig, folder: Path, *, on_cell: Callable[[int], None] | None = None) -> int:
    """Put a file for every cell into a folder; what was drawn from the same checkpoint before is only fetched.

    Args:
        checkpoint: URI.
        grid: what to draw.
        folder: is filled with `Cell.file`.
        on_cell: called with the number of cells just finished.

    Returns:
        How many were drawn anew.
    """
    published = manifest.load(checkpoint)
    wanted, place = cells_of(grid), grid_uri(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    kept = _kept(place, published.digest)
    known = [cell for cell in wanted if cell.file in kept]
    if known:
        manifest.fetch(place, folder, [cell.file for cell in known], kind=KIND)
        if on_cell is not None:
            on_cell(len(known))
    missing = [cell for cell in wanted if cell.file not in kept]
    if not missing:
        return 0
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        others = sorted(kept - {cell.file for cell in known})
        if others:
            manifest.fetch(place, Path(scratch), others, kind=KIND)
        _draw(checkpoint, grid, missing, folder, on_cell)
        _keep(place, published.digest, grid, [Path(scratch) / name for name in others], folder, wanted)
    return len(missing)


def _kept(place: str, digest: str) -> set[str]:
    """Files that this code has drawn from the very checkpoint."""
    try:
        found = manifest.load(place)
    except manifest.ManifestError:
        return set()
    mine = found.kind == KIND and found.code_version == manifest.code_version()
    return set(found.files) if mine and found.inputs == {"checkpoint": digest} else set()


def _draw(
    checkpoint: str, grid: GridConfig, cells: Sequence[Cell], folder: Path, on_cell: Callable[[int], None] | None
) -> None:
    bundle = load_bundle(checkpoint, use_ema=grid.sampling.use_ema)
    for num_frames, group in _by_length(grid, cells):
        clips = generate(
            bundle, [Request(cell.prompt, cell.seed) for cell in group], num_frames=num_frames, height=grid.height,
            width=grid.width, sampling=grid.sampling, batch_size=grid.batch_size, on_batch=on_cell,
        )  # fmt: skip
        for cell, clip in zip(group, clips, strict=True):
            if len(clip) == 1:
                write_image(folder / cell.file, clip[0])
            else:
                write_video(folder / cell.file, clip, grid.sampling.saved_fps)


def _by_length(grid: GridConfig, cells: Sequence[Cell]) -> Iterator[tuple[int, list[Cell]]]:
    stills = [cell for cell in cells if cell.task == "text_to_image"]
    videos = [cell for cell in cells if cell.task == "text_to_video"]
    for num_frames, group in ((1, stills), (grid.num_frames, videos)):
        if group:
            yield num_frames, group


def _keep(
    place: str, digest: str, grid: GridConfig, others: Sequence[Path], folder: Path, cells: Sequence[Cell]
) -> None:
    """Publish old and new cells together; a store that may only be read is no reason to stop."""
    try:
        with manifest.publish(place, KIND, config=grid, inputs={"checkpoint": digest}) as publication:
            for path in (*others, *(folder / cell.file for cell in cells)):
                shutil.copyfile(path, publication.directory / path.name)
    except store.StoreError as error:
        logger.warning("The grid cannot be kept at %s and will be drawn again: %s", place, error)
