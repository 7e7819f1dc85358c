"""Two real runs that differ in one setting, and the page that tells them apart."""

import random
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components import manifest, store
from components.comparison import compare, read_contestant
from components.comparison.grid import cells_of, grid_uri, kept_grid
from components.comparison_config import GridConfig
from components.config import SamplingConfig, TrackingConfig, TrainConfig
from components.errors import KinoflowError
from components.generation import to_pixels
from components.plan_file import held_out_plan, text_key, training_plan
from components.shapes.world import Scene, draw_staging, render
from components.shards import ShardWriter
from components.tracking import open_tracker
from components.train import train
from model.autoencoder import fit_autoencoder
from model.config import STDiT2Config
from model.diffusion_config import FlowConfig
from model.encoder_config import AutoencoderConfig, TextEncoderConfig
from model.optimizer_config import OptimizerConfig
from model.text import build_text_encoder
from tests.components.plans import plan_of

SCENE = Scene("red", "circle", "left", "white")
STAGES = ("stage1", "stage2", "stage3")
GRID = GridConfig(
    prompts=(SCENE.caption, "a blue square moves up"), tasks=("text_to_video", "text_to_image"), num_frames=4,
    height=32, width=32, sampling=SamplingConfig(num_inference_steps=2, guidance_scale=2.0),
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Last checkpoints of two runs, of which the second learns ten times slower in its second stage."""

    root: Path
    slow: str
    fast: str


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        data = write_data(root / "bucket")
        fast, slow = (run(data, root / name, rate) for name, rate in (("fast", 1e-2), ("slow", 1e-3)))
    return Pair(root, slow, fast)


def write_data(out: Path) -> str:
    pixels = to_pixels(render(SCENE, draw_staging(random.Random(3), moving=True), 4, 32, 32))
    small = AutoencoderConfig(latent_channels=4, hidden_channels=8, depth=1, steps=0, crop_px=16)
    autoencoder = fit_autoencoder(list(pixels.permute(1, 0, 2, 3)), small)
    words = TextEncoderConfig(hidden_size=8, num_heads=2, model_max_length=12)
    text_encoder = build_text_encoder([SCENE.caption], words)
    features, mask = text_encoder.encode([SCENE.caption])
    sample = {"clip_id": "clip", "caption": SCENE.caption, "num_frames": 4}
    with manifest.publish(str(out), "dataset", config={"seed": 1}, inputs={"clips": "c" * 64}) as publication:
        autoencoder.save(publication.directory / "autoencoder")
        text_encoder.save(publication.directory / "text_encoder")
        with ShardWriter(publication.directory, shard_size_bytes=1 << 20) as shards:
            shards.add("latents", "clip@0+4/4x32x32", autoencoder.encode(pixels[None])[0])
            shards.add("text", text_key(SCENE.caption), features[0].reshape(-1, 8)[: int(mask[0].sum())])
        for stage in STAGES:
            plan_of([[sample, sample]] * 4).save(publication.directory / training_plan(stage))
            plan_of([[sample]]).save(publication.directory / held_out_plan(stage))
        publication.facts.update({"latent_channels": 4, "caption_channels": 8, "model_max_length": 12})
    return str(out)


def run(data: str, root: Path, rate: float) -> str:
    """Train the stages and publish an evaluation in the form that `evaluate` gives it."""
    parent: str | None = None
    for name in STAGES:
        config = TrainConfig(
            name=name, steps=2, diffusion=FlowConfig(), log_every=1, precision="fp32", num_threads=1, ema_decay=0.5,
            optimizer=OptimizerConfig(learning_rate=rate if name == "stage2" else 1e-2),
            network=STDiT2Config(hidden_size=24, depth=1, num_heads=2, qk_norm=True, pred_sigma=False, init="xavier"),
        )  # fmt: skip
        parent = train(config, TrackingConfig(), data=data, parent=parent, out=str(root / name)).checkpoint
    assert parent is not None
    score = {"mean": 60 * rate, "low": 60 * rate - 0.02, "high": 60 * rate + 0.02, "n": 50}
    inputs = {"checkpoint": manifest.load(parent).digest}
    with manifest.publish(str(root / "evaluate"), "evaluation", config={"seed": 1}, inputs=inputs) as publication:
        publication.facts = {"held_out_loss": 1.0, "scores": {"loop": {"closure": score}}}
    return parent


def test_one_setting_is_named_and_what_it_led_to(pair: Pair, mlflow_server: str, tmp_path: Path) -> None:
    contestants = [read_contestant("slow", pair.slow), read_contestant("fast", pair.fast)]
    with open_tracker(TrackingConfig(run_name=tmp_path.name), task="compare", params={}) as tracker:
        made = compare(contestants, GRID, str(tmp_path / "out"), tracker=tracker)
        run_id = tracker.run_id(60)
    page = " ".join(re.sub(r"<[^>]+>", " ", (tmp_path / "out" / "comparison.html").read_text()).split())
    assert (
        "They differ in one setting: learning rate of optimizer (training of stage2), 0.001 against 0.01. "
        "Of 2 scores of fast, 1 better than of slow by more than chance." in page
    )
    settings = page[page.index("Settings that differ") : page.index("Scores of the last stage")]
    assert settings.count("learning rate of optimizer") == 1 and "10 times as much" in settings
    assert "Everything else is equal: data, code, seeds and all other settings." in settings
    assert "0.06 (0.04 to 0.08) 0.6 (0.58 to 0.62) +0.54 (+0.512 to +0.568) better" in page
    assert (made.drawn, made.cells) == (24, 24)
    html = (tmp_path / "out" / "comparison.html").read_text()
    assert html.count("<video ") == html.count("<img ") == 12 and html.count("<svg") >= 8
    assert "http://" not in re.sub(r'xmlns[:\w]*="[^"]*"|http://www.w3.org[^"<>]*|http://purl.org[^"<>]*', "", html)
    client = MlflowClient(mlflow_server)
    assert {item.path for item in client.list_artifacts(run_id, "comparison")} == {
        "comparison/comparison.html", "comparison/slow", "comparison/fast",
    }  # fmt: skip
    videos = [item.path for item in client.list_artifacts(run_id, "comparison/fast/stage3")]
    assert videos[0] == "comparison/fast/stage3/01-a-red-circle-moves-left-on-a-white-backg-seed-0.mp4"


def test_the_second_time_only_what_is_new_is_drawn(pair: Pair, tmp_path: Path) -> None:
    fast = read_contestant("fast", pair.fast)
    compare([fast], GRID, str(tmp_path / "first"))
    again = compare([fast], GRID, str(tmp_path / "again"))
    assert (again.drawn, again.cells) == (0, 12)
    more = GRID.model_copy(update={"prompts": (*GRID.prompts, "a green triangle")})
    assert compare([fast], more, str(tmp_path / "more")).drawn == 6
    assert kept_grid(pair.fast) == more and set(manifest.load(grid_uri(pair.fast)).files) == {
        cell.file for cell in cells_of(more)
    }
    for name in ("first", "again"):
        assert manifest.verify(str(tmp_path / name)) == []


def test_the_same_noise_at_every_checkpoint_gives_the_same_file_again(pair: Pair, tmp_path: Path) -> None:
    slow = read_contestant("slow", pair.slow)
    compare([slow], GRID, str(tmp_path / "first"))
    before = {stage.name: manifest.load(grid_uri(stage.checkpoint)).files for stage in slow.stages}
    for stage in slow.stages:
        store.delete(store.join(grid_uri(stage.checkpoint), manifest.NAME))
    assert compare([slow], GRID, str(tmp_path / "again")).drawn == 12
    assert before == {stage.name: manifest.load(grid_uri(stage.checkpoint)).files for stage in slow.stages}


def test_bad_input_is_one_sentence(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(KinoflowError, match="There is nothing to compare"):
        compare([], GRID, str(tmp_path / "out"))
    fast = read_contestant("fast", pair.fast)
    with pytest.raises(KinoflowError, match="Two of the things to compare have one name"):
        compare([fast, fast], GRID, str(tmp_path / "out"))
    with pytest.raises(KinoflowError, match="Nothing is published at"):
        read_contestant("x", str(tmp_path / "nowhere"))
    with pytest.raises(KinoflowError, match="holds 'dataset', not 'checkpoint'"):
        read_contestant("x", str(pair.root / "bucket"))
    with pytest.raises(ValueError, match="a prompt of the grid is empty"):
        GridConfig(prompts=(" ",))
    assert [len(stage.history) for stage in fast.stages] == [2, 2, 2]
