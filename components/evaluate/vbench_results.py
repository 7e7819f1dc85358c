"""Results of VBench as scores: read, published beside an evaluation's own, and sent to MLflow."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components import manifest, store
from components.config import Section, TrackingConfig
from components.errors import KinoflowError
from components.evaluate import KIND, METRICS, EvaluateReport
from components.intervals import Score, mean_score, named, share_score
from components.tracking import open_tracker

GROUP = "vbench"
"""Of the scores, beside the tasks."""
RESULTS = "vbench"
"""Folder of the files as they were given."""


class Imported(Section):
    """What an import was told; a prefix that was published otherwise is not used again."""

    results: tuple[str, ...]


def import_results(results: Sequence[Path], tracking: TrackingConfig, *, evaluation: str, out: str) -> dict[str, Score]:
    """Publish an evaluation's `metrics.json` with the scores of VBench added, and send them to its run in MLflow.

    Args:
        results: files named `*_eval_results.json`; of a dimension in several, the last counts.
        tracking: names the run that evaluated.
        evaluation: URI of what the evaluation published.
        out: URI of the prefix to publish.

    Returns:
        The scores by dimension.

    Raises:
        KinoflowError: a file is no such result, or the evaluation does not exist.
    """
    scores: dict[str, Score] = {}
    for path in results:
        scores |= read_results(path)
    published = manifest.load(evaluation)
    before = EvaluateReport.model_validate_json(store.read_bytes(store.join(evaluation, METRICS)))
    report = before.model_copy(update={"scores": {**before.scores, GROUP: scores}})
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in results}
    config = Imported(results=tuple(sorted(digests)))
    with (
        open_tracker(tracking, task="evaluate", params={}) as tracker,
        manifest.publish(out, KIND, config=config, inputs={"evaluation": published.digest, **digests}) as publication,
    ):
        (publication.directory / METRICS).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (publication.directory / RESULTS).mkdir()
        for path in results:
            shutil.copyfile(path, publication.directory / RESULTS / path.name)
            tracker.log_artifact(path, RESULTS)
        publication.facts = json.loads(report.model_dump_json())
        publication.annotations = {"evaluation": evaluation}
        tracker.log_metrics(named({GROUP: scores}, "suite"), step=0)
    return scores


def read_results(path: Path) -> dict[str, Score]:
    """Scores by dimension of a `*_eval_results.json`.

    VBench tells of every dimension its score and, of most, a value for each video. The interval is the one of the
    mean over videos, scaled with it to VBench's score where that is weighed otherwise.

    Raises:
        KinoflowError: it is no such file.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        scores = {str(name): _score_of(result) for name, result in told.items()}
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise KinoflowError(f"{path} is no result of VBench: a score and its videos by dimension ({error}).") from error
    if not scores:
        raise KinoflowError(f"{path} holds no result.")
    return scores


def _score_of(result: Any) -> Score:
    overall, videos = (result[0], result[1]) if isinstance(result, list) else (result, [])
    mean = float(overall)
    if not math.isfinite(mean):
        raise ValueError(f"a score is {mean}")
    values = list(_video_values(videos))
    if not values:
        return Score(mean=mean, low=mean, high=mean, n=1)
    if all(isinstance(value, bool) for value in values) and math.isclose(mean, float(np.mean(values)), abs_tol=1e-6):
        return share_score(sum(map(bool, values)), len(values))
    score = mean_score([float(value) for value in values])
    scale = mean / score.mean if score.mean else 1.0
    low, high = sorted((score.low * scale, score.high * scale))
    return Score(mean=mean, low=min(low, mean), high=max(high, mean), n=score.n)


def _video_values(videos: Any) -> Iterator[float | bool]:
    for video in videos if isinstance(videos, list) else ():
        value = video.get("video_results") if isinstance(video, dict) else None
        if isinstance(value, bool | int | float) and math.isfinite(value):
            yield value
