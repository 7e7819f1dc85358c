"""Real files with real codecs: what is written is what is read, and damage is told, not guessed around."""

import copy
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from components.errors import KinoflowError
from components.video import (
    Frames,
    UnreadableMedia,
    decode_frames,
    probe,
    read_frames,
    resize_crop,
    write_image,
    write_video,
)

PALETTE = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128), (255, 255, 0)], np.uint8)


def mosaic(seed: int, rows: int = 4, columns: int = 6, cell_px: int = 16) -> Frames:
    cells = np.random.default_rng(seed).integers(0, len(PALETTE), (rows, columns))
    return np.kron(PALETTE[cells], np.ones((cell_px, cell_px, 1), np.uint8))


def film(num_frames: int = 20) -> Frames:
    return np.stack([mosaic(seed) for seed in range(num_frames)])


def mean_error(a: Frames, b: Frames) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.fixture
def film_path(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    write_video(path, film(), 24)
    return path


def test_probe_reports_what_was_written(film_path: Path) -> None:
    info = probe(film_path)
    assert (info.media, info.codec, info.pix_fmt) == ("video", "h264", "yuv420p")
    assert (info.height, info.width, info.rotation_deg) == (64, 96, 0)
    assert (info.fps, info.num_frames_header, info.video_streams, info.has_audio) == (24.0, 20, 1, False)
    assert info.duration_s == pytest.approx(20 / 24)


def test_colours_survive_coding(film_path: Path) -> None:
    decoded = np.stack(list(decode_frames(film_path)))
    centres = np.s_[:, 8::16, 8::16]
    assert np.abs(decoded[centres].astype(int) - film()[centres]).max() <= 12


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
def test_same_frames_give_same_bytes(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"other-name{suffix}"
    write_video(first, film(), 30000 / 1001)
    write_video(second, iter(film()), 30000 / 1001)
    assert first.read_bytes() == second.read_bytes()
    assert probe(first).fps == pytest.approx(29.97003, abs=1e-5)
    assert sum(1 for _ in decode_frames(first)) == 20


@pytest.mark.parametrize(("height", "width"), [(63, 95), (64, 95), (63, 96)])
def test_odd_sizes_are_kept(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "odd.mp4"
    write_video(path, film(3)[:, :height, :width], 24)
    assert next(decode_frames(path)).shape == (height, width, 3)


@pytest.mark.parametrize("rotation_deg", [0, 90, 180, 270])
def test_written_rotation_is_applied_on_reading(tmp_path: Path, rotation_deg: int) -> None:
    path = tmp_path / "turned.mp4"
    write_video(path, film(4), 24, rotation_deg=rotation_deg)
    upright = np.rot90(film(4), -rotation_deg // 90, axes=(1, 2))
    info = probe(path)
    assert (info.height, info.width, info.rotation_deg) == (*upright.shape[1:3], rotation_deg)
    assert mean_error(np.stack(list(decode_frames(path))), upright) < 8
    resized = next(decode_frames(path, size=(30, 20)))
    assert resized.shape == (30, 20, 3)


@pytest.mark.parametrize("mirror", [(True, False), (False, True)])
@pytest.mark.parametrize("degrees", [0, 90])
def test_mirrored_recordings_are_turned_upright(tmp_path: Path, degrees: int, mirror: tuple[bool, bool]) -> None:
    path, stored = tmp_path / "selfie.mp4", mosaic(3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = stored.shape[:2]
        stream.set_display_rotation(degrees, hflip=mirror[0], vflip=mirror[1])
        container.mux(stream.encode(VideoFrame.from_ndarray(stored)))
        container.mux(stream.encode(None))
    upright = np.rot90(stored, degrees // 90)
    upright = upright[:, ::-1] if mirror[0] else upright[::-1]
    assert mean_error(read_frames(path, [0])[0], upright) < 20


def test_read_frames_gives_the_frames_asked_for(film_path: Path) -> None:
    every = np.stack(list(decode_frames(film_path)))
    np.testing.assert_array_equal(read_frames(film_path, [7, 2, 7, 19]), every[[7, 2, 7, 19]])
    with pytest.raises(UnreadableMedia, match="ends after 20 frames, frame 20 was asked for"):
        read_frames(film_path, [20])
    with pytest.raises(ValueError, match="non-empty"):
        read_frames(film_path, [])


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_cut_off_data_ends_in_an_error_midway(film_path: Path, share: float) -> None:
    data = film_path.read_bytes()
    film_path.write_bytes(data[: int(share * len(data))])
    frames = decode_frames(film_path)
    assert next(frames).shape == (64, 96, 3)
    with pytest.raises(UnreadableMedia) as caught:
        list(frames)
    assert caught.value.reason == "decode_error"


def _without_index(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: data.index(b"moov") - 4]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"A note under the wrong name.\n" * 50, "not_media"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfilm.mp4\n#EXT-X-ENDLIST\n", "not_media"),
        (b"ffconcat version 1.0\nfile film.mp4\n", "not_media"),
        (None, "not_media"),
    ],
    ids=["empty", "text", "playlist", "concat", "no index"],
)
def test_what_is_no_video_says_so(tmp_path: Path, film_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "wrong.mp4"
    path.write_bytes(_without_index(film_path) if content is None else content)
    with pytest.raises(UnreadableMedia) as caught:
        probe(path)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UnreadableMedia) as caught:
        probe(path)
    assert caught.value.reason == "no_video_stream"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableMedia) as caught:
        probe(tmp_path / "nothing.mp4")
    assert caught.value.reason == "missing_file"


def test_the_error_can_be_rebuilt_in_another_process() -> None:
    error = UnreadableMedia("decode_error", "damaged data after frame 3", Path("a.mp4"))
    again = copy.copy(error)  # takes the road through __reduce__, as a process pool does
    assert (again.reason, str(again)) == (error.reason, str(error))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_stills_read_like_videos_of_one_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"still{suffix}"
    write_image(path, mosaic(0))
    info = probe(path)
    assert (info.media, info.height, info.width, info.fps, info.num_frames_header) == ("image", 64, 96, None, 1)
    frames = list(decode_frames(path))
    assert len(frames) == 1
    assert mean_error(frames[0], mosaic(0)) < 6
    assert read_frames(path, [0, 0], size=(32, 48)).shape == (2, 32, 48, 3)


def test_a_still_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "really-a-picture.mp4"
    Image.fromarray(mosaic(0)).save(path, format="PNG")
    assert probe(path).media == "image"


def test_stills_are_upright_opaque_and_eight_bit(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(mosaic(1)).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(next(decode_frames(tmp_path / "turned.png")), np.rot90(mosaic(1), -1))
    assert (probe(tmp_path / "turned.png").height, probe(tmp_path / "turned.png").width) == (96, 64)

    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert next(decode_frames(tmp_path / "clear.png")).min() == 255

    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert next(decode_frames(tmp_path / "deep.png")).max() == 128


def test_a_damaged_still_is_a_decode_error(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    write_image(path, mosaic(0))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UnreadableMedia) as caught:
        list(decode_frames(path))
    assert caught.value.reason == "decode_error"


def test_writing_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "none.mp4", [], 24)
    with pytest.raises(ValueError, match="must all be uint8"):
        write_video(tmp_path / "mixed.mp4", [mosaic(0), mosaic(0)[:32]], 24)
    with pytest.raises(KinoflowError, match="choose a video encoder"):
        write_video(tmp_path / "odd.mp4", film(2), 24, codec="no_such_codec")


def test_resize_crop_covers_and_cuts_the_centre() -> None:
    """A ramp keeps its slope under bilinear resizing, so the crop's place can be read from its values."""
    ramp = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8)[None, None, :, None], (2, 60, 120, 3)).copy()
    out = resize_crop(ramp, 30, 40)
    # 60x120 is scaled to 30x60 and loses 10 columns on each side; pixel centres map by x -> 2 x + 0.5.
    expected = 2 * (2 * (np.arange(40) + 10) + 0.5)
    assert out.shape == (2, 30, 40, 3)
    np.testing.assert_allclose(out[1, 7, :, 2], expected, atol=1)


def test_resize_crop_of_stills_is_antialiased() -> None:
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::4] = 255
    still = resize_crop(stripes, 16, 16, is_image=True)
    video = resize_crop(stripes, 16, 16)
    assert still[0, 8, 4:12].std() < 3
    np.testing.assert_allclose(still[0, 8, 4:12].mean(), 64, atol=3)
    assert not video.any()


def test_resize_crop_leaves_the_right_size_alone() -> None:
    np.testing.assert_array_equal(resize_crop(film(2), 64, 96), film(2))
    np.testing.assert_array_equal(resize_crop(film(1), 64, 96, is_image=True), film(1))
