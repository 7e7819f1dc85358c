import numpy as np
from PIL import Image

from components.evaluate.pictures import Sample, contact_sheet, plot_held_out, plot_losses


def sample(task: str, num_frames: int) -> Sample:
    frames = np.full((num_frames, 16, 24, 3), 200, np.uint8)
    return Sample(task, "a prompt " * 12, frames, 1, reference=frames[0], verdict={"colour": True, "all": True})


def test_the_sheet_has_one_row_a_sample(tmp_path):
    one, three = tmp_path / "one.png", tmp_path / "three.png"
    contact_sheet([sample("text-to-video", 8)], one)
    contact_sheet([sample("text-to-video", 8), sample("text-to-image", 1), sample("image-to-video", 4)], three)
    assert Image.open(three).height == 3 * Image.open(one).height


def test_plots_are_pictures_even_of_nothing(tmp_path):
    history = {"stage1": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], "stage2": []}
    for data in (plot_losses(history), plot_losses({}), plot_held_out({"64px": [1.0, 2.0]}, [250.0, 750.0])):
        assert data.startswith(b"\x89PNG")
