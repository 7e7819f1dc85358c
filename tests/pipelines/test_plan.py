"""Plans of whole runs: batch sizes, schedule, storage, and the preset they are written into."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from components.errors import KinoflowError
from model.cost import GIB
from pipelines.config import load_run_config, preset_values
from pipelines.plan import PlanOptions, make_plan, planned_preset, write_planned
from pipelines.plan_tables import print_plan


def shown(preset: str, options: PlanOptions) -> str:
    page = io.StringIO()
    print_plan(make_plan(load_run_config(preset), options), Console(file=page, width=160))
    return page.getvalue()


def test_a_gpu_is_filled_and_its_steps_balanced() -> None:
    plan = make_plan(load_run_config("opensora-v1.1"), PlanOptions(gpu="h200"))
    for stage in plan.stages:
        assert stage.imbalance(stage.choice.batch_sizes) < 1.15 < stage.imbalance(stage.listed)
        peaks = [stage.cost.peak_bytes(bucket, size) for bucket, size in stage.choice.batch_sizes.items()]
        assert 0.6 * 139 * GIB < max(peaks) < 139 * GIB


def test_everything_is_on_the_page() -> None:
    options = PlanOptions(gpu="h800", gpus=64, price_per_gpu_hour=2.0, clips=10_000)
    page = shown("opensora-v1.1", options)
    words = [
        "64 x h800, 35% of its peak assumed", "imbalance (longest over mean step)", "GPU-hours", "cost", "memory GiB",
        "one checkpoint 12.3 GB", "6 kept: 73.7 GB", "text features: 32.8 GB", "107000 steps",
    ]  # fmt: skip
    assert [word for word in words if word not in page] == []
    assert "no device named" in shown("demo", PlanOptions()) and "TFLOP" in shown("demo", PlanOptions())


def test_storage_is_bounded_by_crops_of_clips() -> None:
    config = load_run_config("demo")
    few, many = (make_plan(config, PlanOptions(gpu="l40s", clips=clips)) for clips in (100, 10**9))
    # 64px videos and images: 8 channels, 8 or 1 frames of 8 x 8 or so
    assert few.latents_bytes() < 3 * 200 * 4 * 8 * 8 * 64
    assert few.latents_bytes() < many.latents_bytes() == make_plan(config, PlanOptions(gpu="l40s")).latents_bytes()
    assert few.checkpoints_kept == 2 + 1 + 2  # the second stage is as long as one checkpoint lasts


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpu": "rtx4090"}, ["Stage 'stage1'", "do not fit with a single sample", "21.6 GiB", "1024 x 1 frame"]),
        ({"gpu": "voodoo2"}, ["no GPU 'voodoo2'", "h200"]),
        ({"gpu": "h200", "probe": True}, ["give one of them"]),
        ({"gpu": "h200", "caption_tokens": 300}, ["at most 200 tokens"]),
    ],
)
def test_what_cannot_be_planned_is_a_sentence(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(KinoflowError) as raised:
        make_plan(load_run_config("opensora-v1.1"), PlanOptions(**options))  # type: ignore[arg-type]
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_planned_preset_is_the_preset_with_other_batch_sizes(tmp_path: Path) -> None:
    changes = {"stages.0.steps": 70}
    config = load_run_config("demo", changes)
    options = PlanOptions(gpu="l40s", step_s=0.5)
    plan = make_plan(config, options)
    path = tmp_path / "deep" / "planned.yaml"
    write_planned(plan, "demo", changes, path)
    written = load_run_config(str(path))
    assert (written.preset, written.stages[0].steps) == ("demo-planned", 70)
    for before, after, stage in zip(config.stages, written.stages, plan.stages, strict=True):
        planned = [size for bucket, size in stage.choice.batch_sizes.items()]
        assert [bucket.batch_size for bucket in after.buckets.triples] == planned
        assert all(len(sizes) == 1 for counts in after.buckets.batch_sizes.values() for sizes in counts.values())
        assert after.buckets.batch_sizes
        assert after.model_copy(update={"buckets": before.buckets}) == before
    again = make_plan(written, options)
    assert [list(stage.choice.batch_sizes.values()) for stage in again.stages] == [
        list(stage.choice.batch_sizes.values()) for stage in plan.stages
    ]
    changed = planned_preset(preset_values(str(path)), make_plan(config, PlanOptions()))
    assert all("batch_sizes" in stage["buckets"] for stage in changed["stages"])
    with pytest.raises(KinoflowError, match=r"ends in \.yaml"):
        write_planned(plan, "demo", {}, tmp_path / "planned.txt")


def test_stages_that_share_a_table_are_planned_apart() -> None:
    plan = make_plan(load_run_config("smoke"), PlanOptions(gpu="l40s", step_s=0.4))
    values = planned_preset(preset_values("smoke"), plan)
    tables = [stage["buckets"]["buckets"] for stage in values["stages"]]
    assert tables[0] is not tables[1]


def test_probing_measures_this_machine() -> None:
    said: list[str] = []
    config = load_run_config("smoke", {"num_threads": 1, "network.hidden_size": 48, "network.depth": 1})
    plan = make_plan(config, PlanOptions(probe=True, caption_tokens=5), said.append)
    assert plan.in_seconds and "measured" in plan.device and len(said) == 2 * len(plan.stages)
    for stage in plan.stages:
        assert stage.worst_error is not None
        assert all(0 < seconds < 60 for seconds in stage.steps(stage.listed).values())
    with pytest.raises(KinoflowError, match=r"do not fit with a single sample \(0\.0 GiB"):
        make_plan(config, PlanOptions(probe=True, memory_gib=0.01))
