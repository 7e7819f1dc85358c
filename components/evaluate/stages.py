"""The same prompts at every stage of the run that is evaluated, so that MLflow shows what each has learnt."""

from __future__ import annotations

from collections.abc import Sequence

from components import layout
from components.comparison import compare, read_contestant
from components.comparison_config import GridConfig
from components.config import EvaluateConfig
from components.tracking import Tracker


def compare_stages(
    config: EvaluateConfig, name: str, *, prompts: Sequence[str], checkpoint: str, out: str, tracker: Tracker
) -> None:
    """Draw the first prompts at each stage and publish the page beside the evaluation.

    Args:
        config: of the evaluation, whose size and sampling count.
        name: of the run.
        prompts: of the evaluation.
        checkpoint: URI of the last stage's.
        out: URI of the evaluation.
        tracker: gets the page and the videos.
    """
    shown = tuple(dict.fromkeys(prompts))[: config.grid.num_prompts]
    if not shown:
        return
    grid = GridConfig(
        prompts=shown, seeds=config.grid.seeds, tasks=config.grid.tasks, num_frames=config.num_frames,
        height=config.height, width=config.width, sampling=config.sampling, batch_size=config.batch_size,
    )  # fmt: skip
    compare([read_contestant(name, checkpoint)], grid, layout.beside(out, layout.COMPARISON), tracker=tracker)
