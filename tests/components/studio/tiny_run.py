"""A dataset with its encoders and a checkpoint trained on it in a second or two: to draw from, not to admire."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from components import manifest
from components.config import TrackingConfig, TrainConfig
from components.generation import to_pixels
from components.plan_file import held_out_plan, text_key, training_plan
from components.shapes.world import Scene, draw_staging, render
from components.shards import ShardWriter
from components.train import train
from model.autoencoder import fit_autoencoder
from model.config import STDiT2Config
from model.diffusion_config import FlowConfig
from model.encoder_config import AutoencoderConfig, TextEncoderConfig
from model.optimizer_config import OptimizerConfig
from model.text import build_text_encoder
from pipelines.config import RUN_CONFIG, RunConfig
from tests.components.plans import plan_of

SCENE = Scene("red", "circle", "left", "white")
NUM_FRAMES, SIDE_PX, CHANNELS, HIDDEN, WORDS = 4, 32, 4, 8, 12


def scene_frames():
    """(4, 32, 32, 3) uint8 of a red circle that moves."""
    return render(SCENE, draw_staging(random.Random(3), moving=True), NUM_FRAMES, SIDE_PX, SIDE_PX)


def write_dataset(out: str) -> str:
    """One clip with its caption, and the encoders fitted to it."""
    pixels = to_pixels(scene_frames())
    small = AutoencoderConfig(latent_channels=CHANNELS, hidden_channels=8, depth=1, steps=0, crop_px=16)
    autoencoder = fit_autoencoder(list(pixels.permute(1, 0, 2, 3)), small)
    words = TextEncoderConfig(hidden_size=HIDDEN, num_heads=2, model_max_length=WORDS)
    text_encoder = build_text_encoder([SCENE.caption], words)
    features, mask = text_encoder.encode([SCENE.caption])
    sample = {"clip_id": "clip", "caption": SCENE.caption, "num_frames": NUM_FRAMES}
    with manifest.publish(out, "dataset", config={"made": "here"}, inputs={"clips": "c" * 64}) as publication:
        autoencoder.save(publication.directory / "autoencoder")
        text_encoder.save(publication.directory / "text_encoder")
        key = f"clip@0+{NUM_FRAMES}/{NUM_FRAMES}x{SIDE_PX}x{SIDE_PX}"
        with ShardWriter(publication.directory, shard_size_bytes=1 << 20) as shards:
            shards.add("latents", key, autoencoder.encode(pixels[None])[0])
            shards.add("text", text_key(SCENE.caption), features[0].reshape(-1, HIDDEN)[: int(mask[0].sum())])
        for stage in ("stage1", "stage2"):
            plan_of([[sample, sample]] * 4).save(publication.directory / training_plan(stage))
            plan_of([[sample]]).save(publication.directory / held_out_plan(stage))
        facts = {"latent_channels": CHANNELS, "caption_channels": HIDDEN, "model_max_length": WORDS}
        publication.facts.update(facts)
    return out


def train_tiny(base: str) -> list[str]:
    """URIs of the checkpoints of two short stages, trained below the URI `base`."""
    data = write_dataset(f"{base}/bucket")
    checkpoints: list[str] = []
    for name in ("stage1", "stage2"):
        config = TrainConfig(
            name=name, steps=2, diffusion=FlowConfig(), optimizer=OptimizerConfig(learning_rate=1e-2),
            network=STDiT2Config(hidden_size=24, depth=1, num_heads=2, qk_norm=True, pred_sigma=False, init="xavier"),
            ema_decay=0.5, precision="fp32", num_threads=1,
        )  # fmt: skip
        parent = checkpoints[-1] if checkpoints else None
        report = train(config, TrackingConfig(run_name="tiny"), data=data, parent=parent, out=f"{base}/{name}")
        checkpoints.append(report.checkpoint)
    return checkpoints


def write_summary(folder: Path, checkpoints: Sequence[str], config: RunConfig) -> None:
    """What a finished run leaves in `runs/<name>` for others to find it."""
    folder.mkdir(parents=True)
    stages = [{"name": f"stage{number}", "checkpoint": uri} for number, uri in enumerate(checkpoints, start=1)]
    (folder / "summary.json").write_text(json.dumps({"preset": config.preset, "stages": stages}))
    (folder / RUN_CONFIG).write_text(config.model_dump_json())
