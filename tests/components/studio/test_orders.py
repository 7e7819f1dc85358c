from pathlib import Path

import pytest
from pydantic import ValidationError

from components import video
from components.errors import KinoflowError
from components.studio.choices import OWN_SIZE, Choice, Start, name_of, size_names, size_of
from components.studio.gallery import lineage_of, settings_of
from components.studio.orders import TASKS, Wish, make_order, wish_of
from components.studio.uploads import Upload, keep_upload
from tests.components.studio.tiny_run import scene_frames

CHOICE = Choice("demo", "s3://bucket/checkpoint", Start(num_frames=8, height=64, width=64))


def wish(**changes) -> Wish:
    made = Wish(prompt="a red circle", seed=3)
    made.begin_with(CHOICE.start)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def upload(name: str = "first.png") -> Upload:
    return Upload(Path(name), name, True, 32, 32, "")


@pytest.mark.parametrize(
    ("name", "aspect", "size"),
    [
        ("64 px", "1:1", (64, 64)), ("64 px", "16:9", (48, 80)), ("240p", "16:9", (240, 426)),
        ("240p", "9:16", (426, 240)), ("480p", "1:1", (640, 640)),
    ],
)  # fmt: skip
def test_sizes_have_names(name, aspect, size):
    assert size_of(name, aspect) == size


def test_a_checkpoint_starts_with_its_own_size():
    assert name_of(CHOICE.start) == ("64 px", "1:1") and size_names(CHOICE.start)[0] == "64 px"
    assert name_of(Start(height=240, width=426)) == ("240p", "16:9")
    assert wish().pixels() == (64, 64)
    assert wish(size=OWN_SIZE, height=48.0, width=96.0).pixels() == (48, 96)


def test_an_order_holds_what_the_fields_say():
    order = make_order(wish(steps=5.0, negative_prompt="  "), CHOICE, {})
    assert (order.config.height, order.config.width, order.config.num_frames) == (64, 64, 8)
    assert order.config.sampling.num_inference_steps == 5 and order.config.negative_prompt is None
    assert (order.checkpoint, order.kind, order.references) == (CHOICE.checkpoint, "mp4", ())
    assert make_order(wish(task="text_to_image"), CHOICE, {}).kind == "png"


@pytest.mark.parametrize(("given", "at"), [(["first"], "start"), (["last"], "end"), (["first", "last"], "start")])
def test_either_end_of_a_video_can_be_given(given, at):
    order = make_order(wish(task="image_to_video"), CHOICE, {key: upload(key) for key in given})
    assert [reference.name for reference in order.references] == given
    assert order.config.reference_at == at


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_can_be_ordered_once_its_places_are_filled(task):
    uploads = {slot.key: upload(slot.key) for slot in TASKS[task].slots}
    assert make_order(wish(task=task), CHOICE, uploads).config.task == task


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": " "}, "The prompt is empty"),
        ({"prompt": "word " * 10_000}, "10,000 words"),
        ({"steps": None}, "Steps is empty; give a number"),
        ({"num_frames": 2.5}, "Length is 2.5; give a whole number"),
        ({"task": "image_to_video"}, "needs a first frame, a last frame, or both"),
        ({"task": "connect"}, "Connect needs a file for “From”"),
    ],
)
def test_mistakes_are_found_before_a_checkpoint_is_loaded(changes, sentence):
    with pytest.raises(KinoflowError, match=sentence):
        make_order(wish(**changes), CHOICE, {})


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValidationError):
        make_order(wish(guidance_scale=-1), CHOICE, {})


def test_settings_of_a_file_fill_the_fields_again():
    order = make_order(wish(task="edit", edit_ratio=0.7, negative_prompt="blur"), CHOICE, {"video": upload()})
    settings = {"prompt": order.prompt, "seed": 3, "config": order.config.model_dump(mode="json")}
    again = wish_of(settings)
    assert (again.task, again.edit_ratio, again.negative_prompt, again.seed) == ("edit", 0.7, "blur", 3)
    assert again.size == OWN_SIZE and again.pixels() == (64, 64)
    with pytest.raises(KinoflowError, match="another version"):
        wish_of({"config": {"unknown": 1}})


def test_what_is_known_is_shown_and_nothing_else():
    order = make_order(wish(), CHOICE, {})
    told = dict(settings_of({"seed": 3, "fps": 8.0, "config": order.config.model_dump(mode="json")}))
    assert told["Size"] == "64 × 64" and told["Per second"] == "8" and "Method" not in told
    assert lineage_of({"checkpoint_digest": "a" * 64}) == [("Its digest", "a" * 12)]
    assert settings_of({}) == [] and lineage_of({}) == []


def test_uploads_are_named_by_their_content_and_nothing_else(tmp_path: Path):
    incoming, folder = tmp_path / "incoming", tmp_path / "uploads"
    folder.mkdir()
    video.write_image(tmp_path / "a.png", scene_frames()[0])
    (tmp_path / "a.png").rename(incoming)
    kept = keep_upload(incoming, "../../../etc/passwd", folder, 10**6)
    assert kept.path.parent == folder and kept.is_image and (kept.height, kept.width) == (32, 32)
    assert not incoming.exists() and [path.name for path in folder.iterdir()] == [kept.path.name]


@pytest.mark.parametrize(
    ("content", "limit", "sentence"), [(b"words", 100, "neither a picture nor"), (b"x" * 200, 100, "at most")]
)
def test_refused_uploads_leave_nothing(tmp_path: Path, content, limit, sentence):
    incoming = tmp_path / "incoming"
    incoming.write_bytes(content)
    with pytest.raises(KinoflowError, match=sentence):
        keep_upload(incoming, "name", tmp_path, limit)
    assert list(tmp_path.iterdir()) == []
