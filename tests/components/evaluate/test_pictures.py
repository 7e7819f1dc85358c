import numpy as np
from PIL import Image

from components.evaluate.pictures import contact_sheet, plot_held_out, plot_losses
from components.evaluate.samples import Sample
from components.held_out import HeldOutLoss, TimestepLoss


def sample(task: str, num_frames: int) -> Sample:
    frames = np.full((num_frames, 16, 24, 3), 200, np.uint8)
    values = {"over_blending_db": 2.5} if task == "interpolate" else {}
    verdict = {} if values else {"colour": True, "all": True}
    return Sample(task, "a prompt " * 12, frames, 1, frozenset({0}), values, verdict)


def test_the_sheet_has_one_row_a_sample(tmp_path):
    one, three = tmp_path / "one.png", tmp_path / "three.png"
    contact_sheet([sample("text_to_video", 8)], one)
    contact_sheet([sample("text_to_video", 8), sample("text_to_image", 1), sample("interpolate", 4)], three)
    assert Image.open(three).height == 3 * Image.open(one).height


def test_plots_are_pictures_even_of_nothing():
    history = {"stage1": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], "stage2": []}
    points = tuple(TimestepLoss(timestep=step, mean=1.0, low=0.5, high=1.5) for step in (250, 750))
    row = HeldOutLoss(bucket="64px 8 frames", clips=3, loss=1.0, low=0.5, high=1.5, by_timestep=points)
    for data in (plot_losses(history), plot_losses({}), plot_held_out([row]), plot_held_out([])):
        assert data.startswith(b"\x89PNG")
