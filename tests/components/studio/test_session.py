import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.generation.files import read_settings
from components.studio.choices import Choice, Start
from components.studio.gallery import list_pieces
from components.studio.orders import Order, Wish, make_order
from components.studio.session import Job, Session, State
from components.studio.stage import progress_line, spell_seconds
from tests.components.studio.tiny_run import NUM_FRAMES, SIDE_PX

START = Start(NUM_FRAMES, SIDE_PX, SIDE_PX, num_inference_steps=2, guidance_scale=2.0)


def order(checkpoint: str, **changes) -> Order:
    wish = Wish(prompt="a red circle", seed=1)
    wish.begin_with(START)
    for name, value in changes.items():
        setattr(wish, name, value)
    return make_order(wish, Choice("tiny", checkpoint, START), {})


def ended(job: Job, timeout_s: float = 120) -> Job:
    deadline_s = time.monotonic() + timeout_s
    while not job.ended and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return job


@pytest.fixture
def session(s3_server, tmp_path: Path) -> Iterator[Session]:
    running = Session(tmp_path / "made")
    yield running
    running.close()


def test_a_failure_is_a_sentence_and_the_queue_goes_on(session, tiny_checkpoints):
    wrong = session.submit(order("s3://nowhere/at/all"))
    right = session.submit(order(tiny_checkpoints[0], prompt="A red circle, “moving”/../left!"))
    assert ended(wrong).state is State.FAILED and "s3://nowhere/at/all" in wrong.error
    assert ended(right).state is State.DONE, right.error
    assert right.path.parent == session.folder and "a-red-circle-moving-left-seed1" in right.path.name
    assert [piece.prompt for piece in list_pieces(session.folder)] == [right.order.prompt]
    assert read_settings(right.path)["dataset_digest"] == "c" * 64


def test_what_is_cancelled_is_not_drawn_and_leaves_no_file(session, tiny_checkpoints):
    drawn, waiting = (session.submit(order(tiny_checkpoints[0], steps=5000)) for _ in range(2))
    while drawn.state is not State.DRAWING and not drawn.ended:
        time.sleep(0.02)
    assert progress_line(waiting, session.jobs()) == "Waiting; 1 before it"
    session.cancel(waiting)
    session.cancel(drawn)
    assert (ended(waiting).state, ended(drawn).state) == (State.CANCELLED, State.CANCELLED), drawn.error
    assert list_pieces(session.folder) == []


def test_a_stopped_session_ends_what_it_draws(s3_server, tmp_path, tiny_checkpoints):
    session = Session(tmp_path)
    job = session.submit(order(tiny_checkpoints[0], steps=5000))
    session.close()
    assert job.state is State.CANCELLED


def test_times_are_said_as_people_say_them():
    assert [spell_seconds(s) for s in (0.2, 45, 200, 9000)] == ["1 s", "45 s", "3 min", "2.5 h"]
