"""Presets load, override and refuse as they should."""

from pathlib import Path

import pytest

from components.config import BucketConfig, EvaluateConfig, TrainConfig
from components.errors import KinoflowError
from model.geometry import forward_flops
from model.mask_config import MaskRatios
from pipelines.config import RunConfig, load_run_config, preset_names


def test_every_preset_is_valid_and_names_itself() -> None:
    assert {"demo", "smoke", "opensora-v1.1"} <= set(preset_names())
    for name in preset_names():
        config = load_run_config(name)
        assert config.preset == name
        assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_opensora_preset_is_what_was_trained() -> None:
    config = load_run_config("opensora-v1.1")
    assert not config.trainable_here
    assert [stage.steps for stage in config.stages] == [81_000, 22_000, 4_000]
    assert [stage.activation_checkpointing for stage in config.stages] == [False, True, True]
    assert all(stage.masks == MaskRatios.opensora() for stage in config.stages)
    for stage in config.stages:
        adam = stage.optimizer
        assert (adam.learning_rate, adam.schedule, adam.warmup_steps) == (2e-5, "constant", 0)
        assert (adam.weight_decay, adam.betas, adam.eps, adam.grad_clip) == (0.0, (0.9, 0.999), 1e-8, 1.0)
        assert stage.buckets.frame_interval == 3
    network = config.network
    assert (network.depth, network.hidden_size, network.num_heads, network.patch_size) == (28, 1152, 16, (1, 2, 2))
    assert (network.qk_norm, network.input_sq_size, network.model_max_length) == (True, 512, 200)
    assert (config.training.ema_decay, config.training.precision, config.seed) == (0.9999, "bf16", 42)
    # An independent count of XL/2 at 16x240x426: 15x27 tokens a frame.
    assert forward_flops(network, 16, 240, 426, 200) == pytest.approx(9.2e12, rel=0.1)


@pytest.mark.parametrize(
    ("stage", "resolution", "expected"),
    [
        (0, "144p", {1: (0.5, 48), 16: (1.0, 6), 32: (1.0, 3), 96: (1.0, 1)}),
        (0, "256", {1: (0.5, 24), 16: (0.5, 3), 48: (0.5, 1), 64: (0.0, None)}),
        (1, "512", {1: (0.5, 86), 16: (0.2, 4), 32: (0.2, 2), 64: (0.2, 1), 128: (0.0, None)}),
        (1, "1080p", {1: (0.4, 8)}),
        (2, "256", {1: (0.8, 200), 16: (0.5, 22), 32: (0.5, 11), 64: (0.5, 6), 128: (0.8, 4)}),
        (2, "720p", {1: (0.4, 40), 16: (0.6, 3), 32: (0.6, 1), 96: (0.0, None)}),
    ],
)
def test_opensora_bucket_tables(stage: int, resolution: str, expected: dict[int, tuple[float, int | None]]) -> None:
    assert load_run_config("opensora-v1.1").stages[stage].buckets.buckets[resolution] == expected


def test_overrides_reach_lists_mappings_and_frame_counts() -> None:
    changes = {
        "stages.1.steps": 7,
        "evaluate.sampling.guidance_scale": 2.5,
        "stages.0.buckets.buckets.32px.8": [1.0, 3],
        "curate.rules.min_motion": 0.5,
    }
    config = load_run_config("smoke", changes)
    assert config.stages[1].steps == 7
    assert config.evaluate.sampling.guidance_scale == 2.5
    assert config.stages[0].buckets.buckets["32px"][8] == (1.0, 3)
    assert config.curate.rules.min_motion == 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages.0.steps": 0}, ["preset smoke", "stages.0.steps", "greater than 0"]),
        ({"stages.0.stepz": 1}, ["stages.0.stepz", "unknown key"]),
        ({"curat.seed": 1}, ["curat", "unknown key"]),
        ({"stages.7.steps": 1}, ["stages.7.steps", "list of 3"]),
        ({"seed.deeper.still": 1}, ["seed.deeper.still", "nothing below"]),
        ({"stages.1.name": "stage1"}, ["stage names must differ"]),
        ({"stages.1.name": "evaluate"}, ["none of", "evaluate"]),
        ({"network.in_channels": 8}, ["network.in_channels is 8", "the encoders make it 4"]),
        ({"stages.0.optimizer.warmup_steps": 10}, ["warmup_steps 10 must be below steps 10"]),
        (
            {"stages.0.buckets.custom_resolutions": {"32px": [[33, 32]]}},
            ["stage 'stage1', resolution '32px': 33x32", "autoencoder's stride 8", "multiples of 8"],
        ),
        ({"evaluate.height": 50}, ["evaluate: size of the samples: 50x48", "stride 8"]),
        ({"stages.0.steps": -1}, ["greater than 0, not -1"]),
        ({"network.depth": "two"}, ["network.depth", "not 'two'"]),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_place(changes: dict[str, object], words: list[str]) -> None:
    with pytest.raises(KinoflowError) as caught:
        load_run_config("smoke", changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
    assert "more)" not in str(caught.value), "one fault counts once"


def test_an_override_changes_one_stage_only() -> None:
    """Stages 1 and 2 of this preset share a bucket table by a YAML anchor."""
    config = load_run_config("smoke", {"stages.0.buckets.frame_interval": 1})
    assert [stage.buckets.frame_interval for stage in config.stages] == [1, 2, 2]


def test_unknown_preset_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(KinoflowError, match=r"no preset 'huge'.*demo.*smoke"):
        load_run_config("huge")
    broken = tmp_path / "mine.yaml"
    broken.write_text("stages: [", encoding="utf-8")
    with pytest.raises(KinoflowError, match="not valid YAML"):
        load_run_config(str(broken))


def test_encoders_decide_the_widths_of_the_network() -> None:
    network = load_run_config("smoke", {"text_encoder.model_max_length": 20}).trained_network()
    assert (network.in_channels, network.caption_channels, network.model_max_length) == (4, 32, 20)
    assert load_run_config("opensora-v1.1").trained_network().caption_channels == 4096


def test_component_configs_are_consistent() -> None:
    config = load_run_config("smoke", {"num_threads": 2})
    parts = config.component_configs()
    assert list(parts) == ["ingest", "curate", "bucket", "stage1", "stage2", "stage3", "evaluate"]
    bucket = parts["bucket"]
    assert isinstance(bucket, BucketConfig)
    for planned, stage in zip(bucket.stages, config.stages, strict=True):
        train = parts[stage.name]
        assert isinstance(train, TrainConfig)
        assert (planned.name, planned.steps) == (train.name, train.steps) == (stage.name, stage.steps)
        assert (train.masks, train.optimizer, train.num_threads) == (stage.masks, stage.optimizer, 2)
    evaluate = parts["evaluate"]
    assert isinstance(evaluate, EvaluateConfig)
    assert evaluate.num_threads == 2
    assert load_run_config("smoke", {"num_threads": 2, "evaluate.num_threads": 1}).evaluate_config().num_threads == 1


def test_only_the_first_stage_starts_from_given_weights() -> None:
    config = load_run_config("smoke", {"start_from": "work/weights/stage3"})
    starts = [config.train_config(stage.name).start_from for stage in config.stages]
    assert starts == ["work/weights/stage3", None, None]
