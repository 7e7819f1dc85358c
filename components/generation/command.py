"""What `kinoflow generate` does: files for every prompt, and a sentence for every prompt that cannot be made."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError

from components import progress
from components.cli import user_sentence
from components.errors import KinoflowError
from components.generation.bundle import Bundle
from components.generation.drawing import describe, stream
from components.generation.files import FileKind, save_stream
from components.generation.memory import check_memory
from components.generation.prompts import parse_prompt
from components.generation.references import read_reference
from components.generation.rows import Row, split_references, with_changes
from components.generation.settings import GenerationConfig
from components.generation.tasks import arrangement
from components.media import Frames
from model.masks import check_strategy

logger = logging.getLogger(__name__)
_UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Job:
    """One prompt that can be made, with all that it needs."""

    prompt: str
    references: tuple[Frames, ...] = field(repr=False)
    reference_names: tuple[str, ...]
    config: GenerationConfig
    stem: str

    @property
    def steps(self) -> int:
        """Sampling steps of all its samples."""
        return self.config.num_samples * self.config.loops * self.config.sampling.num_inference_steps


@dataclass
class Outcome:
    """What came of a batch.

    Attributes:
        paths: files, in the order of the prompts.
        failures: (number of the prompt from 1, its sentence).
    """

    paths: list[Path] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)


def generate_files(
    rows: Sequence[Row],
    config: GenerationConfig,
    load: Callable[[], Bundle],
    out: Path,
    *,
    kind: FileKind = "mp4",
    memory_gib: float | None = None,
    on_file: Callable[[Path], None] = lambda path: None,
    on_failure: Callable[[int, str], None] = lambda number, sentence: None,
) -> Outcome:
    """Make the files of every prompt; what is wrong with one does not stop the others.

    Every prompt is checked before the checkpoint is loaded, which happens only if there is something to make.

    Args:
        rows: the prompts.
        config: settings of all; rows and JSON in prompts change them.
        load: gives the checkpoint.
        out: folder for the files.
        kind: of the files.
        memory_gib: what the device may use; measured when absent.
        on_file: called with every finished file.
        on_failure: called with the number of a prompt from 1 and its sentence.
    """
    outcome = Outcome()
    possible: list[tuple[int, int]] = []

    @contextmanager
    def going_on(number: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            outcome.failures.append((number, sentence))
            on_failure(number, sentence)

    for number, row in enumerate(rows, start=1):
        with going_on(number):  # what was read is read again later: a long list need not fit into memory
            possible.append((number, prepare(row, config, number - 1).steps))
    if not possible:
        return outcome
    bundle = load()
    with progress.task("generate", sum(steps for _, steps in possible)) as bar:
        done = 0
        for number, steps in possible:
            with going_on(number):
                job = prepare(rows[number - 1], config, number - 1)
                check_memory(bundle, job.config, memory_gib)
                for path in _make(bundle, job, out, kind, partial(_report, bar, done, job.stem)):
                    outcome.paths.append(path)
                    on_file(path)
            done += steps
            bar.update(done)
    return outcome


def prepare(row: Row, config: GenerationConfig, index: int) -> Job:
    """Read and check all that one prompt needs, short of the network.

    Raises:
        KinoflowError, ValidationError, ValueError: what is wrong with it, one sentence.
    """
    config = with_changes(config, row.changes)
    prompt = parse_prompt(row.prompt, config.loops)
    places = split_references(prompt.reference_path) if prompt.reference_path else row.references
    if prompt.mask_strategy:
        config = with_changes(config, {"mask_strategy": prompt.mask_strategy})
    references = tuple(read_reference(place, config) for place in places)
    if references and config.mask_strategy is None and config.task == "text_to_video":
        config = with_changes(config, {"task": "image_to_video"})
    arranged, strategy = arrangement(config, references)
    check_strategy(strategy, [len(frames) for frames in arranged], config.clip_frames, config.loops)
    stem = _UNSAFE.sub("-", row.name).strip("-.") if row.name else ""
    return Job(row.prompt, arranged, places, config, stem or f"sample_{index:04d}")


def _make(bundle: Bundle, job: Job, out: Path, kind: FileKind, on_steps: Callable[[int], None]) -> Iterator[Path]:
    """The files of one prompt, one for each sample."""
    several = job.config.num_samples > 1
    for sample in range(job.config.num_samples):
        config = job.config.model_copy(update={"seed": job.config.seed + sample, "num_samples": 1})
        begun = sample * (job.steps // job.config.num_samples)
        on_step = partial(_count, on_steps, begun)
        frames = stream(bundle, job.prompt, job.references, config, on_step=on_step)
        settings = describe(bundle, job.prompt, job.references, config, job.reference_names)
        stem = out / (f"{job.stem}-{sample}" if several else job.stem)
        yield save_stream(frames, settings, config.video_frames, stem, kind=kind)


def _report(bar: progress.ProgressTask, begun: int, stem: str, steps: int) -> None:
    bar.update(begun + steps, stem)


def _count(on_steps: Callable[[int], None], begun: int, done: int, total: int) -> None:
    on_steps(begun + done)


def _sentence(error: Exception) -> str | None:
    if isinstance(error, torch.OutOfMemoryError):
        return "The device ran out of memory; ask for a smaller size, fewer frames, or another device."
    if isinstance(error, ValidationError | KinoflowError | ValueError | OSError):
        return user_sentence(error)
    return None
