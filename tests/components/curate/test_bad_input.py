"""Files as the world has them: each gives its shots or its reason, and none stops the rest."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from components.config import CurateConfig, ShotConfig
from components.curate.analysis import Row, analyse, analyse_safely
from components.video import probe, write_video
from tests.components.curate.test_analysis import spans, task
from tests.components.curate.test_shots import textured_shots

Pixels = NDArray[np.uint8]


def analysed(path: Path, config: CurateConfig | None = None) -> list[Row]:
    info = probe(path)
    return analyse(task(path, config, fps=info.fps, width=info.width, height=info.height))


def encode(
    path: Path,
    frames: Pixels,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    pts: list[int] | None = None,
    **options: str,
) -> None:
    """Frames through the real encoder, with its own options and with time stamps (in 1/24 s) of choice."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.time_base = Fraction(1, 24)
        for index, array in enumerate(frames):
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.pts, frame.time_base = pts[index] if pts else index, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_an_empty_file_and_a_foreign_one(tmp_path: Path) -> None:
    for name, content, reason in [("a.mp4", b"", "empty_file"), ("b.mp4", b"not a video", "not_media")]:
        (tmp_path / name).write_bytes(content)
        (row,) = analyse(task(tmp_path / name))
        assert (row["outcome"], row["reason"]) == ("rejected", reason)


def test_sound_alone(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (row,) = analyse(task(tmp_path / "sound.mp4"))
    assert (row["outcome"], row["reason"]) == ("rejected", "no_video_stream")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_gives_the_same_rows_every_time(tmp_path: Path, share: float) -> None:
    write_video(tmp_path / "whole.mp4", textured_shots([30, 30, 30]), 24)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: int(len(data) * share)])
    rows = analyse(task(tmp_path / "cut.mp4"))
    assert rows[-1]["reason"] == "decode_error"
    assert spans(rows[:-1]) == [(0, 30), (30, 60)][: len(rows) - 1]
    assert all(analyse(task(tmp_path / "cut.mp4")) == rows for _ in range(3))


def test_a_variable_frame_rate_changes_no_frame(tmp_path: Path) -> None:
    frames = textured_shots([20, 30])
    encode(tmp_path / "steady.mp4", frames)
    encode(tmp_path / "uneven.mp4", frames, pts=[index + 3 * (index // 4) for index in range(50)])
    assert spans(analysed(tmp_path / "uneven.mp4")) == spans(analysed(tmp_path / "steady.mp4")) == [(0, 20), (20, 50)]


@pytest.mark.parametrize("rotation_deg", [90, 180, 270])
def test_a_rotated_file_is_measured_upright(tmp_path: Path, rotation_deg: int) -> None:
    frames = textured_shots([35])
    frames[:, :18] = 0
    write_video(tmp_path / "upright.mp4", frames, 24)
    stored = np.ascontiguousarray(np.rot90(frames, rotation_deg // 90, axes=(1, 2)))
    write_video(tmp_path / "turned.mp4", stored, 24, rotation_deg=rotation_deg)
    (upright,), (turned,) = analysed(tmp_path / "upright.mp4"), analysed(tmp_path / "turned.mp4")
    for name in ("flow", "motion", "brightness", "contrast", "letterbox_share"):
        assert turned[name] == pytest.approx(upright[name], rel=0.1), name


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("ten_bit.mkv", "libx265", "yuv420p10le", {"x265-params": "log-level=none"}),
        ("interlaced.mp4", "libx264", "yuv420p", {"x264-params": "tff=1"}),
        ("chroma_422.mkv", "libx264", "yuv422p", {}),
        ("chroma_444.mkv", "libx264", "yuv444p", {}),
        ("grey.mkv", "ffv1", "gray", {}),
        ("full_range.mp4", "libx264", "yuvj420p", {}),
        ("old.avi", "mpeg4", "yuv420p", {}),
        ("no_count.ts", "libx264", "yuv420p", {}),
    ],
)
def test_formats_measure_alike(tmp_path: Path, name: str, codec: str, pix_fmt: str, options: dict[str, str]) -> None:
    frames = textured_shots([20, 30])
    if pix_fmt == "gray":
        frames = np.repeat(frames[..., 1:2], 3, axis=3)
    encode(tmp_path / "plain.mp4", frames)
    encode(tmp_path / name, frames, codec=codec, pix_fmt=pix_fmt, **options)
    rows, plain = analysed(tmp_path / name), analysed(tmp_path / "plain.mp4")
    assert spans(rows) == [(0, 20), (20, 50)]
    for row, other in zip(rows, plain, strict=True):
        assert row["brightness"] == pytest.approx(other["brightness"], abs=3)
        assert row["motion"] == pytest.approx(other["motion"], rel=0.2)


@pytest.mark.parametrize(("height", "width"), [(71, 97), (1, 64), (7, 5), (601, 333)])
def test_odd_sizes(tmp_path: Path, height: int, width: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, height, width, 3)).astype(np.uint8)
    write_video(tmp_path / "odd.mkv", frames, 24, codec="ffv1")
    rows = analyse_safely(task(tmp_path / "odd.mkv", height=height, width=width))
    assert rows[-1]["end_frame"] == 12
    assert all(row["sharpness"] is not None for row in rows)


def test_one_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", textured_shots([1]), 24)
    (row,) = analysed(tmp_path / "one.mp4")
    assert (row["num_frames"], row["motion"], row["flow"], row["camera_motion"]) == (1, None, None, None)


def test_of_several_streams_the_first_is_taken(tmp_path: Path) -> None:
    small, large = textured_shots([20, 30]), np.kron(textured_shots([50]), np.ones((1, 2, 2, 1), np.uint8))
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = []
        for frames in (small, large):
            stream = container.add_stream("libx264", rate=24)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
            streams.append((stream, frames))
        for index in range(50):
            for stream, frames in streams:
                frame = VideoFrame.from_ndarray(np.ascontiguousarray(frames[index]), format="rgb24")
                container.mux(stream.encode(frame))
        for stream, _ in streams:
            container.mux(stream.encode(None))
    assert (probe(tmp_path / "two.mkv").height, probe(tmp_path / "two.mkv").video_streams) == (72, 2)
    assert spans(analysed(tmp_path / "two.mkv")) == [(0, 20), (20, 50)]


def still(count: int) -> Iterator[Pixels]:
    frame = textured_shots([1])[0]
    for _ in range(count):
        yield frame


def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path: Path) -> None:
    config = CurateConfig(shots=ShotConfig(max_shot_s=1))
    peaks = []
    for name, count in (("short.mp4", 100), ("long.mp4", 600)):
        write_video(tmp_path / name, still(count), 24)
        tracemalloc.start()
        rows = analysed(tmp_path / name, config)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(rows) == -(-count // 24)
    assert peaks[1] < peaks[0] + 1_000_000
