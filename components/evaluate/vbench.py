"""Videos in the layout that VBench and VBench-I2V read.

Their prompt suites are parameters: `VBench_full_info.json` and `vbench2_i2v_full_info.json`, lists of prompts with the
dimensions they belong to. Videos are named `<prompt>-<index>.mp4` and lie in one folder that holds nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.config import Section
from components.encoding import write_video
from components.errors import KinoflowError
from components.generation import Bundle, Frames, Request, generate
from components.generation.settings import GenerationConfig
from components.generation.tasks import arrange
from components.media import UnreadableMedia
from components.video import read_frames

VIDEOS, LIST = "videos", "export.json"
SAMPLES, FLICKER_SAMPLES = 5, 25
"""Videos of a prompt; of one for flicker so many, because VBench leaves out those that move."""
FLICKER = "temporal_flickering"
CAMERA = ", camera "
"""What a prompt of VBench-I2V adds to the description of its picture."""
MAX_NAME_BYTES = 255
SEEDS_PER_PROMPT = 1_000


class SuitePrompt(Section):
    """One prompt of a suite.

    Attributes:
        text: as the suite has it.
        dimensions: what VBench measures on its videos.
        image: file name of the first frame; None for text to video.
    """

    text: str
    dimensions: tuple[str, ...]
    image: str | None = None

    @property
    def num_samples(self) -> int:
        """Videos that VBench asks for."""
        return FLICKER_SAMPLES if FLICKER in self.dimensions else SAMPLES

    def name(self, index: int) -> str:
        """File name of a sample.

        Raises:
            KinoflowError: the prompt cannot be a file name.
        """
        name = f"{self.text}-{index}.mp4"
        if "/" in name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
            raise KinoflowError(f"The prompt {self.text[:60]!r} cannot be a file name, so VBench could not find it.")
        return name


@dataclass(frozen=True)
class Planned:
    """One video to make."""

    prompt: SuitePrompt
    index: int
    seed: int
    path: Path


def read_suite(path: Path, dimensions: Sequence[str] = ()) -> list[SuitePrompt]:
    """The different prompts of a suite, in its order, of all dimensions or of some.

    Args:
        path: the suite's JSON.
        dimensions: names; all when empty.

    Raises:
        KinoflowError: it is no such list, or has no prompt of these dimensions.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        told = [(str(entry["prompt_en"]), tuple(entry["dimension"]), entry.get("image_name")) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KinoflowError(
            f"{path} is no prompt suite of VBench: a JSON list of prompt_en and dimension ({error})."
        ) from error
    is_i2v = any(image is not None for _, _, image in told)
    prompts: dict[str, SuitePrompt] = {}
    for text, of, image in told:
        former = prompts.get(text)
        # Prompts about the camera share the picture of the one without it.
        picture = image or (f"{text.split(CAMERA)[0]}.jpg" if is_i2v else None)
        known = former.dimensions if former else ()
        prompts[text] = SuitePrompt(
            text=text, dimensions=tuple(dict.fromkeys((*known, *of))), image=former.image if former else picture
        )
    chosen = [prompt for prompt in prompts.values() if not dimensions or set(dimensions) & set(prompt.dimensions)]
    if not chosen:
        raise KinoflowError(f"{path} has no prompt of {', '.join(dimensions) or 'any dimension'}.")
    return chosen


def plan_export(suite: Sequence[SuitePrompt], out: Path, seed: int) -> list[Planned]:
    """Every video of a suite with a seed of its own, those that are there already included."""
    return [
        Planned(prompt, index, seed + number * SEEDS_PER_PROMPT + index, out / VIDEOS / prompt.name(index))
        for number, prompt in enumerate(suite)
        for index in range(prompt.num_samples)
    ]


def export(
    bundle: Bundle,
    suite: Sequence[SuitePrompt],
    out: Path,
    config: GenerationConfig,
    *,
    images: Path | None = None,
    batch_size: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> Path:
    """Generate what is missing of a suite's videos; the same command again goes on where it stopped.

    Args:
        bundle: from `load_bundle`.
        suite: from `read_suite`.
        out: folder; the videos lie in `videos/` below it, with `export.json` beside them.
        config: size, length, sampling and first seed.
        images: folder of the first frames, for VBench-I2V.
        batch_size: videos made at once.
        on_batch: called with the number of videos just made.

    Returns:
        The folder of the videos, for VBench's `--videos_path`.

    Raises:
        KinoflowError: a picture is missing or cannot be read.
    """
    planned = plan_export(suite, out, config.seed)
    missing = [video for video in planned if not video.path.exists()]
    for video in missing:
        _image_path(video.prompt, images)
    (out / VIDEOS).mkdir(parents=True, exist_ok=True)
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        requests = [_request(video, images, config) for video in batch]
        clips = generate(
            bundle, requests, num_frames=config.num_frames, height=config.height, width=config.width,
            sampling=config.sampling, batch_size=batch_size,
        )  # fmt: skip
        for video, frames in zip(batch, clips, strict=True):
            partial = video.path.with_suffix(".partial.mp4")
            write_video(partial, frames, config.sampling.saved_fps)
            partial.rename(video.path)
        if on_batch is not None:
            on_batch(len(batch))
    told = {
        "checkpoint": bundle.checkpoint, "checkpoint_digest": bundle.checkpoint_digest,
        "config": config.model_dump(mode="json"),
        "videos": [
            {"name": video.path.name, "seed": video.seed, "dimensions": video.prompt.dimensions} for video in planned
        ],
    }  # fmt: skip
    (out / LIST).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return out / VIDEOS


def _image_path(prompt: SuitePrompt, images: Path | None) -> Path | None:
    if prompt.image is None:
        return None
    if images is None:
        raise KinoflowError("This suite begins from pictures; name their folder.")
    path = images / Path(prompt.image).name
    if not path.is_file():
        raise KinoflowError(f"The picture {prompt.image!r} of the suite is not in {images}.")
    return path


def _request(video: Planned, images: Path | None, config: GenerationConfig) -> Request:
    path = _image_path(video.prompt, images)
    if path is None:
        return Request(video.prompt.text, video.seed)
    try:
        picture: Frames = read_frames(path, [0])
    except UnreadableMedia as error:
        raise KinoflowError(f"The picture {path} cannot be read ({error}).") from error
    references, strategy = arrange("image_to_video", [picture], config.num_frames)
    return Request(video.prompt.text, video.seed, references=references, mask_strategy=strategy)
