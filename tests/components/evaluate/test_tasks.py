"""What each task is given, on the made world and on held-out clips of real files."""

from pathlib import Path

import numpy as np
import pytest

from components import manifest, tables
from components.config import EvaluateConfig, SamplingConfig
from components.errors import KinoflowError
from components.evaluate.measures import decibels
from components.evaluate.references import HeldOut
from components.evaluate.tasks import Job, plan_jobs
from components.shapes.world import Scene, Staging, render
from components.takedown import TakenDown
from components.video import write_video
from model.masks import apply_mask_strategy

COUNTS = (
    "text_to_image", "text_to_video", "image_to_video", "loop", "extend_forward", "extend_backward", "connect",
    "interpolate",
)  # fmt: skip
SMALL = EvaluateConfig(
    num_frames=8, height=32, width=32, frame_interval=2, measure_shapes=True,
    sampling=SamplingConfig(num_inference_steps=2), **{f"num_{task}": 2 for task in COUNTS},
)  # fmt: skip


def world(folder: Path, lengths: list[int], split: str = "eval") -> HeldOut:
    """Held-out clips of one real film each."""
    rows: list[dict[str, object]] = []
    (folder / "objects").mkdir(parents=True)
    for number, length in enumerate(lengths):
        scene = Scene("red", "circle", "left", "white")
        frames = render(scene, Staging(0.35, 0.5, 0.0, 0.02 * number), length, 48, 64)
        write_video(folder / "objects" / f"{number}.mp4", frames, 24.0)
        rows.append(
            {
                "clip_id": f"{number}-0000", "source_id": str(number), "object_key": f"{number}.mp4", "media": "video",
                "start_frame": 0, "end_frame": length, "num_frames": length, "caption": scene.caption,
                "outcome": "kept", "split": split,
            }
        )  # fmt: skip
    with manifest.publish(str(folder / "clips"), "clips", config=SMALL, inputs={}) as publication:
        tables.frame(rows, tables.CLIPS).write_parquet(publication.directory / "clips.parquet")
    return HeldOut(SMALL, str(folder / "clips"), str(folder / "objects"), folder / "scratch", TakenDown())


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    return world(tmp_path_factory.mktemp("held-out"), [20, 14, 26])


@pytest.fixture(scope="module")
def jobs(held_out: HeldOut) -> dict[str, Job]:
    return {job.task: job for job in plan_jobs(SMALL, lambda: held_out)}


def test_every_task_has_its_samples_and_seeds_of_its_own(jobs):
    assert tuple(jobs) == COUNTS
    assert [len(job.cases) for job in jobs.values()] == [2] * len(COUNTS)
    assert [job.num_frames for job in jobs.values()] == [1] + [8] * (len(COUNTS) - 1)
    assert len({case.request.seed for job in jobs.values() for case in job.cases}) == 2 * len(COUNTS)


def test_given_frames_are_where_the_task_wants_them(jobs):
    given = {task: sorted(job.cases[0].given) for task, job in jobs.items()}
    assert given == {
        "text_to_image": [], "text_to_video": [], "image_to_video": [0], "loop": [0, 7], "extend_forward": [0, 1],
        "extend_backward": [6, 7], "connect": [0, 7], "interpolate": [0, 2, 4, 6],
    }  # fmt: skip
    loop = jobs["loop"].cases[0].given
    assert np.array_equal(loop[0], loop[7])
    extended = jobs["extend_forward"].cases[0]
    assert np.array_equal(extended.given[0], extended.request.references[0][-2])


def test_given_frames_are_what_the_sampler_writes(jobs):
    import torch

    for job in list(jobs.values())[2:]:
        case = job.cases[0]
        latents = torch.zeros(1, 3, 8, 32, 32)
        references = [
            torch.from_numpy(frames.astype(np.float32)).permute(3, 0, 1, 2) for frames in case.request.references
        ]
        mask = apply_mask_strategy(latents, [references], [case.request.mask_strategy])
        assert [number for number in range(8) if mask[0, number] == 0] == sorted(case.given)
        for number, picture in case.given.items():
            assert np.array_equal(latents[0, :, number].permute(1, 2, 0).numpy().astype(np.uint8), picture)


def test_interpolation_takes_held_out_clips_that_are_long_enough(jobs, held_out):
    cases = jobs["interpolate"].cases
    assert len(held_out.clips(9, 8)) == 2, "the film of 14 frames has no 8 at every second frame"
    assert all(case.truth is not None and case.truth.shape == (8, 32, 32, 3) for case in cases)
    assert all(np.array_equal(case.truth[2], case.given[2]) for case in cases)
    steps = [decibels(a, b) for a, b in zip(cases[0].truth, cases[0].truth[1:])]
    assert max(steps) < 40, "every second frame differs from the one before"


def test_without_the_made_world_everything_comes_from_held_out_clips(held_out):
    config = SMALL.model_copy(update={"measure_shapes": False, "prompts": ("a cat", "a dog", "a cow")})
    jobs = {job.task: job for job in plan_jobs(config, lambda: held_out)}
    assert tuple(jobs) == COUNTS
    assert {case.request.prompt for case in jobs["text_to_video"].cases} <= {"a cat", "a dog", "a cow"}
    assert {case.request.prompt for case in jobs["connect"].cases} == {"a red circle moves left on a white background"}
    assert jobs["image_to_video"].cases[0].given[0].shape == (32, 32, 3)


def test_a_task_without_a_long_enough_clip_is_left_out(tmp_path):
    short = world(tmp_path, [9, 10])
    config = SMALL.model_copy(update={"measure_shapes": False})
    tasks = [job.task for job in plan_jobs(config, lambda: short)]
    assert tasks == ["text_to_image", "text_to_video", "image_to_video"]
    with pytest.raises(KinoflowError, match="nothing to generate"):
        nothing = world(tmp_path / "none", [])
        plan_jobs(config, lambda: nothing)


def test_clips_shared_by_training_and_evaluation_are_refused(tmp_path, held_out):
    world(tmp_path, [20])
    table = tables.read(tmp_path / "clips" / "clips.parquet", tables.CLIPS)
    both = table.vstack(table.with_columns(clip_id=tables.pl.lit("0-0001"), split=tables.pl.lit("train")))
    with manifest.publish(str(tmp_path / "both"), "clips", config=SMALL, inputs={}) as publication:
        both.write_parquet(publication.directory / "clips.parquet")
    with pytest.raises(KinoflowError, match="Training and evaluation share the source file 0"):
        HeldOut(SMALL, str(tmp_path / "both"), str(tmp_path / "objects"), tmp_path / "s", TakenDown())


def test_an_extension_that_is_given_everything_is_refused():
    with pytest.raises(ValueError, match="condition_frames 8 must be below num_frames 8"):
        EvaluateConfig.model_validate({**SMALL.model_dump(), "condition_frames": 8})
