import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file

from components import manifest, store, tables
from components.bucket import BucketReport, bucket
from components.bucket.encode import prefetched, read_windows, to_pixels, unique_windows
from components.config import BucketConfig
from components.errors import KinoflowError
from components.plan_file import PlanFile, held_out_plan, text_key, training_plan
from components.shards import Location
from components.shared_tensors import INDEX, INDEX_FILE, PART_KIND, open_index
from components.video import write_image, write_video
from model.autoencoder import fit_autoencoder, load_autoencoder
from model.encoder_config import AutoencoderConfig, TextEncoderConfig
from model.text import build_text_encoder, load_text_encoder

HEIGHT, WIDTH, NUM_FRAMES = 48, 64, 40
SHOT = 24  # first frame of the second clip of every video
CONFIG: dict[str, Any] = {
    "seed": 3,
    "autoencoder": {"steps": 3, "hidden_channels": 8, "latent_channels": 4, "depth": 0},
    "text_encoder": {"hidden_size": 16, "model_max_length": 8},
    "stages": [
        {
            "name": "low",
            "steps": 6,
            "buckets": {
                "frame_interval": 2,
                "custom_resolutions": {"24px": [[24, 32], [32, 24]]},
                "buckets": {"24px": {1: [1.0, 2], 4: [1.0, 3]}},
            },
        },
        {
            "name": "high",
            "steps": 4,
            "buckets": {
                "frame_interval": 3,
                "custom_resolutions": {"48px": [[48, 64], [64, 48]]},
                "buckets": {"48px": {1: [0.5, 2], 4: [1.0, 2], 6: [0.0, None]}},
            },
        },
    ],
}


def level(video: int, frame: int) -> int:
    """Brightness of a frame: says which one it is."""
    return 20 + 10 * video + 4 * frame


def put(objects: Path, path: Path) -> tuple[str, str]:
    digest = manifest.sha256_file(path)
    key = f"{digest[:2]}/{digest}{path.suffix}"
    (objects / key).parent.mkdir(parents=True, exist_ok=True)
    path.rename(objects / key)
    return digest, key


def video_rows(root: Path, number: int, split: str) -> list[dict[str, object]]:
    """A video of two shots, whose frames are uniform and name themselves by their brightness."""
    frames = np.stack([np.full((HEIGHT, WIDTH, 3), level(number, frame), np.uint8) for frame in range(NUM_FRAMES)])
    frames[:, :8, :8] = 255 - frames[:, :8, :8]
    path = root / f"{number}.mp4"
    write_video(path, frames, 25.0, crf=1)
    digest, key = put(root / "objects", path)
    shots = [(0, SHOT), (SHOT, NUM_FRAMES)]
    return [
        {
            "clip_id": f"video{number}-{index:04d}",
            "content_sha256": digest,
            "object_key": key,
            "media": "video",
            "start_frame": start,
            "end_frame": end,
            "num_frames": end - start,
            "fps": 25.0,
            "height": HEIGHT,
            "width": WIDTH,
            "caption": f"grey number {number}",
            "split": split,
            "outcome": "kept",
        }
        for index, (start, end) in enumerate(shots)
    ]


def image_row(root: Path, number: int, split: str) -> dict[str, object]:
    pixels = np.random.default_rng(number).integers(0, 255, (WIDTH, HEIGHT, 3), dtype=np.uint8)
    path = root / f"{number}.png"
    write_image(path, pixels)
    digest, key = put(root / "objects", path)
    return {
        "clip_id": f"image{number}",
        "content_sha256": digest,
        "object_key": key,
        "media": "image",
        "start_frame": 0,
        "end_frame": 1,
        "num_frames": 1,
        "height": WIDTH,
        "width": HEIGHT,
        "caption": "noise",
        "split": split,
        "outcome": "kept",
    }


def publish_clips(out: Path, rows: list[dict[str, object]]) -> str:
    with manifest.publish(str(out), "clips", config={}, inputs={}) as publication:
        table = tables.with_caption_digests(tables.frame(rows, tables.CLIPS))
        tables.write(table, publication.directory / "clips.parquet", tables.CLIPS)
    return str(out)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects and clips: three videos of two clips each and three images; the last of each is held out."""
    root = tmp_path_factory.mktemp("data")
    rows = [row for i, split in enumerate(("train", "train", "eval")) for row in video_rows(root, i, split)]
    rows += [image_row(root, i, split) for i, split in enumerate(("train", "train", "eval"))]
    rows.append({"clip_id": "gone", "outcome": "dropped", "reason": "static"})
    publish_clips(root / "clips", rows)
    return root


@pytest.fixture(scope="module")
def report(root: Path) -> BucketReport:
    return run(root, "out")


def run(root: Path, out: str, clips: str = "clips", latents: str = "latents", **changes: Any) -> BucketReport:
    config = BucketConfig.model_validate(CONFIG | changes)
    return bucket(config, str(root / clips), str(root / "objects"), str(root / latents), str(root / out))


def get(location: Location) -> torch.Tensor:
    return location.tensor(store.read_range(location.uri, location.offset, location.size_bytes))


def read_plan(root: Path, name: str) -> pl.DataFrame:
    return PlanFile.open(root / "out" / name).table()


def test_every_planned_latent_and_caption_is_in_the_shards(root: Path, report: BucketReport, tmp_path: Path) -> None:
    shards = open_index(str(root / "out"), tmp_path)
    plans = [read_plan(root, name(stage)) for stage in ("low", "high") for name in (training_plan, held_out_plan)]
    planned = pl.concat(plans)
    for row in planned.iter_rows(named=True):
        latent, text = shards.locations([row["latent_key"], row["text_key"]])
        assert get(latent).shape == latent.shape == (4, row["num_frames"], row["height"] // 8, row["width"] // 8)
        assert get(text).shape[1] == 16
    assert planned["latent_key"].n_unique() == report.latents
    assert len(shards) == report.latents + report.captions
    noise, grey = shards.locations([text_key("noise"), text_key("grey number 0")])
    assert (noise.shape, grey.shape) == ((2, 16), (4, 16))


def test_the_index_says_what_the_dataset_holds_but_not_where(root: Path, report: BucketReport, tmp_path: Path) -> None:
    index = tables.read(root / "out" / INDEX_FILE, INDEX)
    shards = open_index(str(root / "out"), tmp_path)
    assert len(index) == len(shards) == report.latents + report.captions
    for row, location in zip(index.iter_rows(named=True), shards.locations(index["key"].to_list()), strict=True):
        assert row["sha256"] == location.sha256.hex() and tuple(row["shape"]) == location.shape
        assert row["dtype"] == location.dtype == "F32" and row["kind"] == location.uri.split("/")[-2]


def test_counts_add_up(root: Path, report: BucketReport) -> None:
    assert (report.train_clips, report.eval_clips, report.captions) == (6, 3, 4)
    low, high = report.stages["low"], report.stages["high"]
    assert (low.batches, high.batches) == (6, 4)
    assert (low.clips_used, low.clips_unused) == (6, 0)
    assert low.eval_samples_per_bucket == {"24px/1/1.33": 1, "24px/4/0.75": 2}
    # 24 frames are above the barrier of 6 x 3, so only the clips of 16 frames are taken at 48px
    assert high.eval_samples_per_bucket == {"48px/1/1.33": 1, "48px/4/0.75": 1}
    for stage, summary in report.stages.items():
        plan = read_plan(root, training_plan(stage))
        assert summary.samples == len(plan) == sum(summary.samples_per_bucket.values())
        assert summary.clips_used + summary.clips_unused == report.train_clips
        assert set(plan["clip_id"]).isdisjoint(read_plan(root, held_out_plan(stage))["clip_id"])
    assert report.autoencoder_psnr_db is not None
    assert report.autoencoder_psnr_db > 10
    assert manifest.load(str(root / "out")).facts["latent_channels"] == 4


def test_windows_hold_the_right_frames(root: Path, report: BucketReport) -> None:
    clips = tables.read(root / "clips" / "clips.parquet", tables.CLIPS)
    plan = read_plan(root, training_plan("low"))
    windows = unique_windows([(plan, 2), (plan, 2)], clips)
    assert len({window.key for window in windows}) == len(windows) == plan["latent_key"].n_unique()
    starts = {row["latent_key"]: row["start_frame"] for row in plan.iter_rows(named=True)}
    seen = 0
    for window, pixels in read_windows(windows, str(root / "objects")):
        assert pixels.shape == (len(window.frames), window.height, window.width, 3)
        if window.is_image:
            assert window.frames == (0,)
            continue
        seen += 1
        video, shot = int(window.clip_id[5]), int(window.clip_id[-1])
        first = starts[window.key] + shot * SHOT
        assert window.frames == (first, first + 2, first + 4, first + 7)
        assert window.frames[-1] < (NUM_FRAMES if shot else SHOT)
        found = pixels[:, window.height // 2, window.width // 2, 0].astype(int)
        assert found == pytest.approx([level(video, frame) for frame in window.frames], abs=3)
    assert seen > 3


def test_shards_are_what_the_published_encoders_give(root: Path, report: BucketReport, tmp_path: Path) -> None:
    clips = tables.read(root / "clips" / "clips.parquet", tables.CLIPS)
    shards = open_index(str(root / "out"), tmp_path)
    autoencoder = load_autoencoder(root / "out" / "autoencoder")
    assert autoencoder.digest == report.autoencoder_digest
    windows = unique_windows([(read_plan(root, training_plan("high")), 3)], clips)
    for window, frames in read_windows(windows, str(root / "objects")):
        latents = autoencoder.encode(to_pixels(frames)[None])[0]
        torch.testing.assert_close(get(shards.locations([window.key])[0]), latents)
    text_encoder = load_text_encoder(root / "out" / "text_encoder")
    assert text_encoder.digest == report.text_encoder_digest
    features, mask = text_encoder.encode(["grey number 1"])
    grey = get(shards.locations([text_key("grey number 1")])[0])
    torch.testing.assert_close(grey, features[0, : int(mask.sum())])


def test_the_same_inputs_give_the_same_bytes_and_a_second_run_does_nothing(root: Path, report: BucketReport) -> None:
    assert run(root, "again") == run(root, "elsewhere", latents="other latents") == report
    before = {path: path.stat().st_mtime_ns for path in (root / "again").rglob("*")}
    assert run(root, "again") == report
    assert {path: path.stat().st_mtime_ns for path in (root / "again").rglob("*")} == before
    assert run(root, "other", seed=4).manifest_digest != report.manifest_digest


def test_given_encoder_folders_are_used(root: Path, tmp_path: Path) -> None:
    frames = [torch.rand(3, 16, 16) * 2 - 1 for _ in range(4)]
    autoencoder = fit_autoencoder(frames, AutoencoderConfig(steps=0, latent_channels=3, hidden_channels=8, depth=0))
    autoencoder.save(tmp_path / "autoencoder")
    text_encoder = build_text_encoder(["some other words"], TextEncoderConfig(hidden_size=8, model_max_length=5))
    text_encoder.save(tmp_path / "text")
    folders = {"autoencoder_folder": str(tmp_path / "autoencoder"), "text_encoder_folder": str(tmp_path / "text")}
    report = run(root, "given", **folders)
    assert (report.autoencoder_digest, report.text_encoder_digest) == (autoencoder.digest, text_encoder.digest)
    assert (report.latent_channels, report.caption_channels, report.model_max_length) == (3, 8, 5)
    assert set(manifest.load(str(root / "given")).inputs) == {"clips", "autoencoder", "text_encoder"}
    assert load_autoencoder(root / "given" / "autoencoder").digest == autoencoder.digest
    for key in folders:
        with pytest.raises(KinoflowError, match="does not exist or is empty"):
            run(root, "refused", **{**folders, key: str(tmp_path / "nowhere")})
        with pytest.raises(KinoflowError, match="is not a"):
            run(root, "refused", **{**folders, key: str(root / "clips")})


def parts(latents: Path) -> dict[Path, manifest.Manifest]:
    loaded = {path.parent: manifest.load(str(path.parent)) for path in latents.rglob(manifest.NAME)}
    return {path: part for path, part in loaded.items() if part.kind == PART_KIND}


def tensors_in(latents: Path) -> list[str]:
    """Keys of every tensor below the root, read from the shards themselves."""
    return [key for shard in latents.rglob("0*.safetensors") for key in load_file(shard)]


@pytest.fixture
def encoders(tmp_path: Path) -> dict[str, Any]:
    frames = [torch.rand(3, 16, 16) * 2 - 1 for _ in range(4)]
    fit_autoencoder(frames, AutoencoderConfig(steps=0, latent_channels=3, hidden_channels=8, depth=0)).save(
        tmp_path / "autoencoder"
    )
    build_text_encoder(["grey noise"], TextEncoderConfig(hidden_size=8, model_max_length=5)).save(tmp_path / "text")
    return {"autoencoder_folder": str(tmp_path / "autoencoder"), "text_encoder_folder": str(tmp_path / "text")}


def test_a_second_run_encodes_only_what_is_missing(
    root: Path, tmp_path: Path, encoders: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Another run with other stages: nothing twice, and the same dataset as if there had been no run before it."""
    latents = tmp_path / "latents"
    places = {"latents": str(latents), **encoders}
    low = run(root, "low", stages=CONFIG["stages"][:1], **places)
    before = tensors_in(latents)
    assert len(parts(latents)) == 2
    with caplog.at_level("INFO"):
        both = run(root, "both", **places)
    assert f"{low.latents} of {both.latents} windows were encoded before" in caplog.text
    after = tensors_in(latents)
    assert len(after) == len(set(after)) and set(before) < set(after)
    assert sum(not key.endswith("error") for key in after) == both.latents + both.captions
    assert len(parts(latents)) == 3  # the captions were all there
    assert run(root, "both at once", **{**places, "latents": str(tmp_path / "fresh")}) == both
    assert run(root, "low again", stages=CONFIG["stages"][:1], **places) == low
    assert tensors_in(latents) == after


def test_a_lost_shard_is_made_again(
    root: Path, tmp_path: Path, encoders: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    latents = tmp_path / "latents"
    places = {"latents": str(latents), **encoders}
    report = run(root, "lost", **places)
    victim = next(latents.rglob("latents/00000.safetensors"))
    victim.unlink()
    assert run(root, "lost", **places) == report
    assert f"{victim} is missing or has another size than was published. What it held is encoded again" in caplog.text
    shards = open_index(str(root / "lost"), tmp_path / "scratch")
    index = tables.read(root / "lost" / INDEX_FILE, INDEX)
    assert all(get(location) is not None for location in shards.locations(index["key"].to_list()))
    shutil.rmtree(latents)
    with pytest.raises(KinoflowError, match=r"Where the tensors of .*lost lie is lost: Nothing is published at"):
        open_index(str(root / "lost"), tmp_path / "scratch")
    assert run(root, "lost", **places) == report


def changed_stage(**changes: Any) -> list[dict[str, Any]]:
    return [CONFIG["stages"][0] | changes]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stages": [CONFIG["stages"][0]] * 2}, "Two stages are called 'low'"),
        (
            {"stages": changed_stage(buckets={"buckets": {"144p": {16: [1.0, 1]}}})},
            r"Stage 'low': none of the 6 training clips fits a bucket \(144p x 16 frames\). The largest clip is",
        ),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_written(
    root: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(KinoflowError, match=sentence):
        run(root, "refused", **changes)
    assert not (root / "refused").exists()


def test_no_kept_clip_and_no_training_clip(root: Path) -> None:
    clips = tables.read(root / "clips" / "clips.parquet", tables.CLIPS)
    publish_clips(root / "dropped", [{"clip_id": "a", "outcome": "dropped", "reason": "static"}])
    publish_clips(root / "held-out", clips.filter(pl.col("split") == "eval").to_dicts())
    with pytest.raises(KinoflowError, match="keeps none of its 1 clips"):
        run(root, "refused", clips="dropped")
    with pytest.raises(KinoflowError, match="holds out all of its 3 kept clips"):
        run(root, "refused", clips="held-out")
    with pytest.raises(KinoflowError, match="Nothing is published at"):
        run(root, "refused", clips="nowhere")


def test_without_held_out_clips_there_is_no_psnr(root: Path) -> None:
    clips = tables.read(root / "clips" / "clips.parquet", tables.CLIPS)
    publish_clips(root / "train-only", clips.filter(pl.col("split") == "train").to_dicts())
    report = run(root, "train-only-out", clips="train-only", stages=CONFIG["stages"][:1])
    assert report.autoencoder_psnr_db is None
    assert report.stages["low"].eval_samples == 0


def test_a_lost_or_changed_source_is_named(root: Path) -> None:
    rows = tables.read(root / "clips" / "clips.parquet", tables.CLIPS).filter(pl.col("media") == "video")[:1].to_dicts()
    publish_clips(root / "changed", [rows[0] | {"content_sha256": "0" * 64}])
    publish_clips(root / "lost", [rows[0] | {"object_key": "00/nothing.mp4"}])
    publish_clips(root / "short", [rows[0] | {"start_frame": 30, "end_frame": 90, "num_frames": 60}])
    for clips, sentence in (
        ("changed", "The source of clip video0-0000 at .* has changed"),
        ("lost", "The source of clip video0-0000 is missing"),
        ("short", "Clip video0-0000 cannot be read any more from .*: ends after 40 frames"),
    ):
        with pytest.raises(KinoflowError, match=sentence):
            run(root, "refused", clips=clips, seed=1, crops_per_clip=None, stages=CONFIG["stages"][:1])


def test_prefetching_keeps_order_and_passes_errors_on() -> None:
    assert list(prefetched(iter(range(50)), depth=3)) == list(range(50))

    def failing() -> Any:
        yield 1
        raise KinoflowError("broken")

    items = prefetched(failing())
    assert next(items) == 1
    with pytest.raises(KinoflowError, match="broken"):
        next(items)


def test_the_command_line(root: Path, report: BucketReport, tmp_path: Path) -> None:
    config = tmp_path / "bucket.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    places = ["--clips", str(root / "clips"), "--objects", str(root / "objects"), "--out", str(root / "out")]
    places += ["--latents", str(root / "latents")]
    command = [sys.executable, "-m", "components.bucket", "--config", str(config), *places]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = BucketReport.model_validate_json(found.stdout)
    assert printed.model_copy(update={"manifest_digest": report.manifest_digest}) == report
    config.write_text("stages: []")
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and failed.stderr.startswith("error: ") and "stages" in failed.stderr
