"""Generated clips with everything that was measured on them, and the scores of a task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from components.evaluate.measures import Values, closure, in_between, kept, movement, seam
from components.evaluate.tasks import Case, Job
from components.evaluate.truth import verdict_of
from components.generation import Bundle, to_frames, to_pixels
from components.intervals import Score, values_score
from components.media import Frames

AT_ONCE = 64
"""Pictures that go through the autoencoder together."""


@dataclass(frozen=True)
class Sample:
    """One generated video or picture.

    Attributes:
        task: one of `components.generation.tasks.TASKS`.
        prompt: the text it was generated from.
        frames: (T, H, W, 3) uint8.
        seed: the seed of its noise.
        given: numbers of the frames that were given.
        values: what was measured, by name.
        verdict: which parts of the prompt the pixels fulfil, by name; empty when nothing was read back.
    """

    task: str
    prompt: str
    frames: Frames
    seed: int
    given: frozenset[int] = frozenset()
    values: Values = field(default_factory=dict)
    verdict: dict[str, bool] = field(default_factory=dict)


def measured(job: Job, clips: Sequence[Frames], bundle: Bundle, *, with_truth: bool) -> list[Sample]:
    """The samples of a job with their values.

    Args:
        job: what was asked for.
        clips: what came, in order, (T, H, W, 3) uint8 each.
        bundle: for what the autoencoder makes of given frames.
        with_truth: read back what the prompt asked for, in the made world's grammar.
    """
    rebuilt = _rebuilt(job.cases, bundle)
    samples = []
    for case, frames, again in zip(job.cases, clips, rebuilt, strict=True):
        verdict = verdict_of(job.task, frames, case.request.prompt, case.given) if with_truth else {}
        values = _values(job.task, case, frames, again)
        samples.append(
            Sample(
                job.task, case.request.prompt, frames, case.request.seed, frozenset(case.given), values, verdict
            )
        )  # fmt: skip
    return samples


def _values(task: str, case: Case, frames: Frames, rebuilt: dict[int, Frames]) -> Values:
    values = movement(frames)
    if case.given:
        values |= kept(frames, case.given, rebuilt)
    if task in ("extend_forward", "extend_backward", "loop", "connect"):
        values |= seam(frames, case.given)
    if task == "loop":
        values |= closure(frames)
    if case.truth is not None:
        values |= in_between(frames, case.truth, case.given)
    return values


def _rebuilt(cases: Sequence[Case], bundle: Bundle) -> list[dict[int, Frames]]:
    """Every given picture as the autoencoder gives it back, by case and number of the frame."""
    pictures = [picture for case in cases for picture in case.given.values()]
    again: list[Frames] = []
    for start in range(0, len(pictures), AT_ONCE):
        pixels = to_pixels(np.stack(pictures[start : start + AT_ONCE]))[None]
        again += list(to_frames(bundle.autoencoder.decode(bundle.autoencoder.encode(pixels)))[0])
    following = iter(again)
    return [{number: next(following) for number in case.given} for case in cases]


def scores_of(samples: Sequence[Sample]) -> dict[str, dict[str, Score]]:
    """Scores by task and name, tasks in the order of their samples: truths as shares, numbers as means."""
    values: dict[str, dict[str, list[float | bool]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        for name, value in (sample.verdict | sample.values).items():
            values[sample.task][name].append(value)
    return {task: {name: values_score(row) for name, row in rows.items()} for task, rows in values.items()}
