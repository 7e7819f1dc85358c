"""One video of any length: clip after clip, its frames given away as soon as they are decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from components.errors import KinoflowError
from components.generation.bundle import Bundle, to_frames
from components.generation.clips import ClipSize, Text, draw_noise, encode_frames, encode_text, sample_clips
from components.generation.prompts import Prompt, parse_prompt
from components.generation.settings import GenerationConfig
from components.generation.tasks import arrangement
from components.media import Frames
from model.sampling import Continuation

OnStep = Callable[[int, int], None]
"""Called with the sampling steps done and their total."""
SETTINGS_VERSION = 1


@dataclass(frozen=True)
class Drawn:
    """A finished video.

    Attributes:
        frames: (T, H, W, 3) uint8.
        settings: all that it was made with, as JSON; what a file carries.
    """

    frames: Frames
    settings: dict[str, JsonValue]


def draw(
    bundle: Bundle,
    prompt: str,
    references: Sequence[Frames],
    config: GenerationConfig,
    *,
    on_step: OnStep | None = None,
    reference_names: Sequence[str] = (),
) -> Drawn:
    """Generate one video with the seed of the configuration.

    Args:
        bundle: from `load_bundle`.
        prompt: text, or texts that change on the way (`|0|text A|2|text B`).
        references: (T_ref, H, W, 3) uint8 each, of any size.
        config: task, size, length and sampling.
        on_step: for progress.
        reference_names: where the references came from, for the settings.

    Raises:
        KinoflowError: a prompt, a strategy or references that do not fit.
    """
    chunks = list(stream(bundle, prompt, references, config, on_step=on_step))
    return Drawn(np.concatenate(chunks), describe(bundle, prompt, references, config, reference_names))


def stream(
    bundle: Bundle,
    prompt: str,
    references: Sequence[Frames],
    config: GenerationConfig,
    *,
    on_step: OnStep | None = None,
) -> Iterator[Frames]:
    """The frames of one video, a few at a time; memory does not grow with the number of loops.

    Arguments and errors as in `draw`.

    Yields:
        (t, H, W, 3) uint8, `config.video_frames` frames in all.
    """
    video = _Video(bundle, parse_prompt(prompt, config.loops), references, config, on_step)
    left = config.video_frames
    for frames in video.frames():
        yield frames[:left]
        left -= len(frames)
        if left <= 0:
            return


def describe(
    bundle: Bundle,
    prompt: str,
    references: Sequence[Frames],
    config: GenerationConfig,
    reference_names: Sequence[str] = (),
) -> dict[str, JsonValue]:
    """All that a video is made with: enough to make it again, and to know where it came from."""
    arranged, strategy = arrangement(config, references)
    names = [*reference_names, *[""] * len(arranged)]
    return {
        "kinoflow": SETTINGS_VERSION,
        "prompt": prompt,
        "seed": config.seed,
        "mask_strategy": strategy,
        "references": [
            {"path": name, "num_frames": len(frames), "sha256": hashlib.sha256(frames.tobytes()).hexdigest()}
            for name, frames in zip(names, arranged, strict=False)
        ],
        "checkpoint": bundle.checkpoint,
        "checkpoint_digest": bundle.checkpoint_digest,
        "data": bundle.data,
        "fps": config.sampling.saved_fps,
        "config": config.model_dump(mode="json"),
    }


class _Video:
    """The state of one video while its clips are made."""

    def __init__(
        self,
        bundle: Bundle,
        prompt: Prompt,
        references: Sequence[Frames],
        config: GenerationConfig,
        on_step: OnStep | None,
    ) -> None:
        self.bundle, self.prompt, self.config, self.on_step = bundle, prompt, config, on_step
        self.size = ClipSize.of(bundle, config.clip_frames, config.height, config.width)
        self.generator = torch.Generator().manual_seed(config.seed)
        arranged, strategy = arrangement(config, references)
        if strategy is None and arranged:
            raise KinoflowError(f"{config.task} has no place for references; choose another task or a mask strategy.")
        self.text = encode_text(bundle, [text for _, text in prompt.texts], config.negative_prompt)
        with bundle.at_work("autoencoder"):
            encoded = [encode_frames(bundle, frames, self.size) for frames in arranged]
        self.continuation = Continuation([encoded], [strategy], config.carried_frames)

    def frames(self) -> Iterator[Frames]:
        """The frames of the video, (t, H, W, 3) each time."""
        for loop in range(self.config.loops):
            latents = self._sample(loop)
            with self.bundle.at_work("autoencoder"):
                yield from self._decode(latents, loop)

    def _sample(self, loop: int) -> Tensor:
        config, steps = self.config, self.config.sampling.num_inference_steps
        on_step = self.on_step

        def report(done: int) -> None:
            if on_step is not None:
                on_step(loop * steps + done, config.loops * steps)

        latents = draw_noise([self.generator], self.size)
        mask = self.continuation.write(latents)
        return sample_clips(
            self.bundle, self._text_of(loop), latents, None if bool((mask == 1).all()) else mask, [self.generator],
            size=self.size, sampling=config.sampling, inverted_aspect=config.inverted_aspect,
            precision=config.precision, on_step=report,
        )  # fmt: skip

    def _text_of(self, loop: int) -> Text:
        text = self.prompt.text_of(loop)
        return self.text.pick([own for _, own in self.prompt.texts].index(text))

    def _decode(self, latents: Tensor, loop: int) -> Iterator[Frames]:
        """New frames as they are decoded; then the last ones become the condition of the next clip."""
        config, num_frames = self.config, latents.shape[2]
        repeated = config.carried_frames if loop else 0
        last = loop == config.loops - 1
        kept_from = 0 if self.continuation.needs_whole_clip else num_frames - config.carried_frames
        first = repeated if last else min(kept_from, repeated)
        kept: list[Tensor] = []
        for start, pixels in self._chunks(latents, first):
            if not last and start + pixels.shape[2] > kept_from:
                kept.append(pixels[:, :, max(0, kept_from - start) :])
            if start + pixels.shape[2] > repeated:
                yield to_frames(self.size.cut(pixels[:, :, max(0, repeated - start) :]))[0]
        if not last:
            carried = self.bundle.autoencoder.encode(torch.cat(kept, dim=2)) if kept else latents[:, :, :0]
            self.continuation.carry(carried)

    def _chunks(self, latents: Tensor, first: int) -> Iterator[tuple[int, Tensor]]:
        """(number of the first frame, its pixels (1, 3, t, H, W)) from frame `first` on."""
        size = self.bundle.autoencoder.micro_batch_size
        for start in range(first, latents.shape[2], size):
            yield start, self.bundle.autoencoder.decode(latents[:, :, start : start + size])
