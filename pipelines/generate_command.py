"""The command `kinoflow generate`: from prompts on the command line, in a file or in a table to videos."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from components.cli import EXIT_FAILED
from components.config import parse
from components.errors import KinoflowError
from model.diffusion_config import SamplingMethod

if TYPE_CHECKING:
    from components.generation.rows import Row
    from components.generation.settings import GenerationConfig

DEFAULTS: Mapping[str, Any] = {
    "num_frames": 8, "height": 64, "width": 64, "seed": 0, "guidance_scale": 3.0, "num_inference_steps": 20,
}  # fmt: skip
"""What the demo was trained for; another checkpoint needs its own size and length."""
QUIRKS: Mapping[str, Any] = {"inverted_aspect": True, "reference_interval": 1, "keep_condition_frames": False}
"""Errors of Open-Sora 1.1 at inference, for comparisons with it."""
LONGEST_CLIP_S = 16.0
TaskName = Literal[
    "text_to_image", "text_to_video", "image_to_video", "loop", "extend_forward", "extend_backward", "connect", "edit",
    "interpolate",
]  # fmt: skip
_REFERENCES: dict[str, Any] = {"rich_help_panel": "References"}
_SAMPLING: dict[str, Any] = {"rich_help_panel": "Sampling"}
_MACHINE: dict[str, Any] = {"rich_help_panel": "Machine"}

PromptArgument = Annotated[list[str] | None, typer.Argument(help="One video for each prompt.")]
PromptsOption = Annotated[str | None, typer.Option(help="File of one prompt a line, or .csv, .parquet, .jsonl table.")]
CheckpointOption = Annotated[
    str | None, typer.Option(help="URI, name of a run (demo when absent), or models:/kinoflow@champion.")
]
DataOption = Annotated[str | None, typer.Option(help="URI of the encoders; the checkpoint's own when absent.")]
LikeOption = Annotated[Path | None, typer.Option(help="A generated file: its settings, where nothing else is said.")]
OutOption = Annotated[Path, typer.Option(help="Folder for the files.")]
FormatOption = Annotated[Literal["mp4", "gif", "png"], typer.Option("--format", help="A png of a video is animated.")]
TaskOption = Annotated[TaskName | None, typer.Option(help="What the references are for.", **_REFERENCES)]
SizeOption = Annotated[str | None, typer.Option(help="'240p 16:9', or pixels with the height first: 240x426.")]
SideOption = Annotated[int | None, typer.Option(min=8, help="In pixels.")]
NumFramesOption = Annotated[int | None, typer.Option(min=1, help="Of one clip; 1 makes a still.")]
SecondsOption = Annotated[float | None, typer.Option(min=0.01, help="Length; in several clips where that is needed.")]
LoopsOption = Annotated[int | None, typer.Option(min=1, help="Clips in a row, each continuing the last.")]
CarriedOption = Annotated[
    int | None, typer.Option(min=0, help="Frames a clip takes of the one before, or of a video; a quarter if absent.")
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="The same seed makes the same file.")]
SamplesOption = Annotated[int | None, typer.Option(min=1, help="Videos for each prompt, seeds counting up.")]
ReferenceOption = Annotated[list[str] | None, typer.Option(help="Image or video; again for more.", **_REFERENCES)]
FirstOption = Annotated[str | None, typer.Option(help="Image that becomes the first frame.", **_REFERENCES)]
LastOption = Annotated[str | None, typer.Option(help="Image that becomes the last frame.", **_REFERENCES)]
StrategyOption = Annotated[str | None, typer.Option(help="Open-Sora 1.1's string, such as 0.", **_REFERENCES)]
EditOption = Annotated[float | None, typer.Option(min=0, max=1, help="How far an edit goes.", **_REFERENCES)]
IntervalOption = Annotated[int | None, typer.Option(min=1, help="Take every so many frames.", **_REFERENCES)]
MethodOption = Annotated[SamplingMethod | None, typer.Option(help="dpm-solver++ takes 25 steps.", **_SAMPLING)]
StepsOption = Annotated[int | None, typer.Option("--num-inference-steps", "--steps", min=1, **_SAMPLING)]
GuidanceOption = Annotated[float | None, typer.Option(min=0, help="How closely to follow the prompt.", **_SAMPLING)]
NegativeOption = Annotated[str | None, typer.Option(help="What to steer away from.", **_SAMPLING)]
ChannelOption = Annotated[int | None, typer.Option(min=1, help="Guide the first channels only.", **_SAMPLING)]
FpsOption = Annotated[float | None, typer.Option(min=0.1, help="Told to the network.", **_SAMPLING)]
SavedFpsOption = Annotated[float | None, typer.Option(min=0.1, help="Of the file.", **_SAMPLING)]
QuirksOption = Annotated[bool, typer.Option("--opensora-quirks", help="Repeat Open-Sora 1.1's errors.", **_SAMPLING)]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; found when absent.", **_MACHINE)]
PrecisionOption = Annotated[Literal["fp32", "bf16"] | None, typer.Option(help="Of matrix products.", **_MACHINE)]
OffloadOption = Annotated[bool, typer.Option(help="Keep off the GPU what is not needed.", **_MACHINE)]
MemoryOption = Annotated[float | None, typer.Option(min=0.01, help="GiB; measured when absent.", **_MACHINE)]


def generate(
    prompt: PromptArgument = None,
    prompts: PromptsOption = None,
    checkpoint: CheckpointOption = None,
    data: DataOption = None,
    like: LikeOption = None,
    out: OutOption = Path("runs/generated"),
    kind: FormatOption = "mp4",
    task: TaskOption = None,
    size: SizeOption = None,
    height: SideOption = None,
    width: SideOption = None,
    num_frames: NumFramesOption = None,
    seconds: SecondsOption = None,
    loops: LoopsOption = None,
    condition_frame_length: CarriedOption = None,
    seed: SeedOption = None,
    num_samples: SamplesOption = None,
    reference: ReferenceOption = None,
    first: FirstOption = None,
    last: LastOption = None,
    mask_strategy: StrategyOption = None,
    edit_ratio: EditOption = None,
    reference_interval: IntervalOption = None,
    method: MethodOption = None,
    num_inference_steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    negative_prompt: NegativeOption = None,
    cfg_channel: ChannelOption = None,
    fps: FpsOption = None,
    saved_fps: SavedFpsOption = None,
    opensora_quirks: QuirksOption = False,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    offload: OffloadOption = True,
    memory: MemoryOption = None,
) -> None:
    """Make videos from a trained checkpoint: from text, and from images and videos.

    A prompt that cannot be made ends in a sentence, the others go on, and the exit code is 1.

    Examples:

    - `kinoflow generate "a red circle moves left on a white background"`
    - `kinoflow generate "a red circle moves left" --first first.png --format gif`
    - `kinoflow generate --prompts prompts.csv --size "240p 16:9" --seconds 4 --checkpoint models:/kinoflow@champion`
    - `kinoflow generate "a red circle moves left" --seconds 20 --num-frames 8`
    - `kinoflow generate "a red circle moves left" --task extend_forward --reference clip.mp4`
    """
    given = dict(locals())
    before = _read_settings(like)
    places, at = _references(reference, first, last)
    config = _config(before, given, at)
    rows = _rows(prompt, prompts, places, before)
    target = _Target(out, kind, device, offload, memory)
    _run(checkpoint or before.get("checkpoint", "demo"), data, rows, config, target)


@dataclass(frozen=True)
class _Target:
    """Where the files go and what computes them."""

    out: Path
    kind: Literal["mp4", "gif", "png"]
    device: str | None
    offload: bool
    memory_gib: float | None


def _read_settings(like: Path | None) -> Mapping[str, Any]:
    if like is None:
        return {}
    from components.generation.files import read_settings

    return read_settings(like)


def _references(
    references: list[str] | None, first: str | None, last: str | None
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """All places, and what `--first` and `--last` say about them."""
    ends = [place for place in (first, last) if place is not None]
    if not ends:
        return tuple(references or ()), {}
    if references:
        raise KinoflowError("--first and --last are the references of image_to_video; leave --reference out.")
    return tuple(ends), {"task": "image_to_video", "reference_at": "start" if first else "end"}


def _config(before: Mapping[str, Any], given: Mapping[str, Any], at: Mapping[str, Any]) -> GenerationConfig:
    """The defaults or an earlier file's settings, changed by what was given, as long as was asked for."""
    from components.generation.rows import SAMPLING_KEYS, SETTING_KEYS, with_changes
    from components.generation.settings import GenerationConfig, frames_of

    start = parse(GenerationConfig, dict(before["config"]), "the settings") if before else None
    names = ("size", *SETTING_KEYS, *SAMPLING_KEYS)
    changes = {name: given[name] for name in names if given.get(name) is not None}
    quirks = QUIRKS if given["opensora_quirks"] else {}
    config = with_changes(start or GenerationConfig(), {**({} if start else DEFAULTS), **quirks, **changes, **at})
    if given["seconds"] is None:
        return config
    frames = frames_of(given["seconds"], config.sampling.saved_fps)
    longest = given["num_frames"] or frames_of(LONGEST_CLIP_S, config.sampling.saved_fps)
    return with_changes(config, lengths(frames, min(frames, longest), given["condition_frame_length"]))


def lengths(frames: int, clip: int, carried: int | None) -> dict[str, int]:
    """Clips of `clip` frames that make a video of `frames`, each handing on `carried` (a quarter when None)."""
    carried = max(1, clip // 4) if carried is None else carried
    if frames > clip and carried >= clip:
        raise KinoflowError(f"Clips of {clip} frames that hand on {carried} never get longer; hand on fewer.")
    loops = 1 if frames <= clip else 1 + math.ceil((frames - clip) / (clip - carried))
    return {"num_frames": clip, "loops": loops, "total_frames": frames}


def _rows(
    prompts: list[str] | None, place: str | None, references: tuple[str, ...], before: Mapping[str, Any]
) -> list[Row]:
    from components.generation.rows import Row, read_rows

    if not references and before:
        references = tuple(str(reference["path"]) for reference in before["references"])
    rows = [Row(text, references) for text in prompts or ()]
    if place is not None:
        rows += [row if row.references else replace(row, references=references) for row in read_rows(place)]
    if not rows and before:
        rows = [Row(str(before["prompt"]), references)]
    if not rows:
        raise KinoflowError("There is nothing to make: give a prompt, or a file of them with --prompts.")
    return rows


def _run(checkpoint: str, data: str | None, rows: list[Row], config: GenerationConfig, target: _Target) -> None:
    from components.registry import is_model, resolve
    from pipelines.local.services import Ports, home_folder, running_services

    home, registered = home_folder(), is_model(checkpoint)
    source = checkpoint if registered else checkpoint_of_run(checkpoint, home)
    with running_services(home, Ports(), only_store=not registered, wait_for_tracking=registered):
        from components.generation.bundle import choose_device, load_bundle
        from components.generation.command import generate_files

        device = choose_device(target.device)
        outcome = generate_files(
            rows, config,
            lambda: load_bundle(
                resolve(source), data, use_ema=config.sampling.use_ema, device=device, offload=target.offload
            ),
            target.out, kind=target.kind, memory_gib=target.memory_gib,
            on_file=lambda path: typer.echo(str(path)),
            on_failure=lambda number, sentence: typer.echo(f"prompt {number}: {sentence}", err=True),
        )  # fmt: skip
    if outcome.failures:
        failed = len(outcome.failures)
        typer.echo(f"{failed} of {len(rows)} prompts could not be made.", err=True)
        raise typer.Exit(EXIT_FAILED)


def checkpoint_of_run(given: str, home: Path) -> str:
    """A URI as it is; the name of a run becomes the last checkpoint in its summary."""
    summary = home.parent / "runs" / given / "summary.json"
    if "/" in given:
        return given
    if not summary.is_file():
        raise KinoflowError(f"There is no finished run {given!r} in {summary.parent.parent}; give a checkpoint's URI.")
    return str(json.loads(summary.read_text(encoding="utf-8"))["stages"][-1]["checkpoint"])
