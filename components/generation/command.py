"""What `kinoflow generate` does: one file for every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from components import progress, video
from components.config import SamplingConfig
from components.generation.bundle import load_bundle
from components.generation.drawing import describe, stream
from components.generation.files import save_stream
from components.generation.prompts import parse_prompt
from components.generation.settings import GenerationConfig
from model.diffusion_config import SamplingMethod


def generate_command(
    *,
    checkpoint: str,
    prompts: Sequence[str],
    out: str,
    num_frames: int,
    height: int,
    width: int,
    seed: int,
    guidance_scale: float,
    num_inference_steps: int,
    method: SamplingMethod = "own",
    reference: str | None = None,
    mask_strategy: str | None = None,
    fps: float = 24.0,
    saved_fps: float = 8.0,
) -> list[Path]:
    """Generate one file per prompt into the folder `out`: PNG for one frame, MP4 for more.

    A reference without a mask strategy becomes the first frame.

    Raises:
        KinoflowError: an empty prompt, an unreadable reference, a strategy that does not fit.
    """
    for prompt in prompts:
        parse_prompt(prompt)
    references = () if reference is None else (np.stack(list(video.decode_frames(Path(reference)))),)
    config = GenerationConfig(
        task="image_to_video" if references else "text_to_video", mask_strategy=mask_strategy, num_frames=num_frames,
        height=height, width=width, seed=seed,
        sampling=SamplingConfig(
            guidance_scale=guidance_scale, num_inference_steps=num_inference_steps, method=method, fps=fps,
            saved_fps=saved_fps,
        ),
    )  # fmt: skip
    bundle = load_bundle(checkpoint)
    paths = []
    with progress.task("generate", len(prompts) * num_inference_steps) as bar:
        for index, prompt in enumerate(prompts):
            begun = index * num_inference_steps
            frames = stream(
                bundle, prompt, references, config,
                on_step=lambda done, _, begun=begun: bar.update(begun + done),  # type: ignore[misc]
            )  # fmt: skip
            settings = describe(bundle, prompt, references, config)
            paths.append(save_stream(frames, settings, config.video_frames, Path(out) / f"sample_{index:04d}"))
    return paths
