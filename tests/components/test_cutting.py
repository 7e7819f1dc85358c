"""Clips cut out of real videos: the frames of the span, bit by bit where nothing needs to change."""

from pathlib import Path

import av
import numpy as np
import pytest

from components.cutting import Cut, copy_cuts, encode_cuts, resampled
from components.video import Frames, decode_frames, decode_spans, probe, write_video
from tests.components.pack.conftest import film


def frames_of(path: Path) -> Frames:
    return np.stack(list(decode_frames(path)))


def encode(path: Path, frames: Frames, **options: str) -> Path:
    """A video as others make it: B-frames, keyframes far apart."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"threads": "1", **options})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.mp4"
    write_video(path, film(60, 48, 64, 1), 24)  # a keyframe every 24 frames
    return path


def cut(path: Path, start: int, end: int, **changes: object) -> Cut:
    return Cut(start, end, 24.0, path.parent / f"{path.stem}-{start}-{end}.mp4", **changes)  # type: ignore[arg-type]


def test_a_cut_from_a_keyframe_is_copied_bit_by_bit(source: Path) -> None:
    cuts = [cut(source, 24, 40), cut(source, 0, 24), cut(source, 30, 48), cut(source, 48, 60)]
    copied = copy_cuts(source, cuts)
    assert copied == [cuts[0], cuts[1], cuts[3]]
    whole = frames_of(source)
    for one in copied:
        assert (frames_of(one.out) == whole[one.start_frame : one.end_frame]).all()
        assert probe(one.out).fps == 24
    assert not cuts[2].out.exists()


def test_what_must_change_is_never_copied(source: Path) -> None:
    assert not copy_cuts(source, [cut(source, 0, 24, size=(24, 32)), cut(source, 0, 24, out_fps=12.0)])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("options", [{"bf": "3", "g": "16"}, {"bf": "3", "g": "16", "x264-params": "open-gop=1"}])
def test_frames_that_depend_on_others_outside_are_not_copied(
    suffix: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = encode(tmp_path / f"b.{suffix}", film(50, 48, 64, 2), **options)
    whole = frames_of(path)
    cuts = [cut(path, start, end) for start, end in ((0, 16), (16, 32), (16, 31), (0, 13), (32, 50), (5, 9), (0, 50))]
    copied = copy_cuts(path, cuts)
    assert cuts[-1] in copied
    for one in copied:
        assert (frames_of(one.out) == whole[one.start_frame : one.end_frame]).all(), one


@pytest.mark.parametrize("rotation_deg", [90, 180, 270])
def test_a_copy_stays_upright(rotation_deg: int, tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    write_video(path, film(12, 48, 64, 3), 24, rotation_deg=rotation_deg)
    (copied,) = copy_cuts(path, [cut(path, 0, 12)])
    assert (frames_of(copied.out) == frames_of(path)).all()


def test_other_codecs_are_left_to_the_encoder(tmp_path: Path) -> None:
    path = tmp_path / "old.avi"
    write_video(path, film(12, 48, 64, 3), 24, codec="mpeg4")
    assert not copy_cuts(path, [cut(path, 0, 12)])


def test_encoding_keeps_the_frames_of_the_span(source: Path) -> None:
    cuts = [cut(source, 30, 48), cut(source, 5, 9), cut(source, 40, 60)]  # two overlap
    assert not encode_cuts(source, cuts, codec="libx264", crf=1)
    whole = frames_of(source).astype(int)
    for one in cuts:
        found = frames_of(one.out).astype(int)
        assert len(found) == one.num_out_frames == one.end_frame - one.start_frame
        nearest = np.abs(found[:, None] - whole[None]).mean((2, 3, 4)).argmin(1)
        assert nearest.tolist() == list(range(one.start_frame, one.end_frame))


def test_encoding_twice_gives_the_same_bytes(source: Path) -> None:
    one = cut(source, 3, 20)
    made = []
    for _ in range(2):
        encode_cuts(source, [one], codec="libx264", crf=18)
        made.append(one.out.read_bytes())
    assert made[0] == made[1]


def test_size_and_rate_are_changed_as_asked(source: Path) -> None:
    one = cut(source, 0, 24, size=(24, 32), out_fps=12.0)
    encode_cuts(source, [one], codec="libx264", crf=18)
    info = probe(one.out)
    assert (info.height, info.width, info.fps) == (24, 32, 12.0)
    assert len(frames_of(one.out)) == one.num_out_frames == 12


@pytest.mark.parametrize(
    ("num_frames", "fps", "out_fps", "expected"),
    [
        (6, 24.0, 12.0, [1, 3, 5]),
        (3, 15.0, 30.0, [0, 0, 1, 1, 2, 2]),
        (5, 25.0, 25.0, [0, 1, 2, 3, 4]),
        (1, 24.0, 8.0, [0]),
        (10, 30000 / 1001, 10.0, [1, 4, 7]),
    ],
)
def test_a_frame_of_another_rate_shows_the_middle_of_its_time(
    num_frames: int, fps: float, out_fps: float, expected: list[int]
) -> None:
    assert resampled(num_frames, fps, out_fps) == expected


def test_damage_costs_the_cuts_behind_it(source: Path) -> None:
    cuts = [cut(source, 0, 10), cut(source, 50, 70), cut(source, 70, 80)]
    failed = encode_cuts(source, cuts, codec="libx264", crf=18)
    assert set(failed) == {cuts[1].out, cuts[2].out}
    assert failed[cuts[1].out].reason == "decode_error" and "ends after 60 frames" in failed[cuts[1].out].detail
    assert not cuts[1].out.exists() and len(frames_of(cuts[0].out)) == 10


def test_only_wanted_frames_are_given(source: Path) -> None:
    whole = frames_of(source)
    given = np.stack(list(decode_spans(source, [(2, 4), (4, 5), (50, 51)])))
    assert (given == whole[[2, 3, 4, 50]]).all()
