"""Clips cut out of source videos: packets copied where a cut needs no new encoding, frames encoded anew elsewhere.

Spans are half-open ranges of frame numbers, counted in presentation order from 0 as `components.video` counts them.
The only file beside `components.video` that knows codecs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.packet import Packet
from av.video.stream import VideoStream

from components.media import Frames, UnreadableMedia, VideoInfo
from components.video import VIDEO_DEMUXERS, decode_spans, probe, write_video

COPIED_CODECS = {"h264", "hevc", "av1", "vp9"}
"""Codecs that an .mp4 file holds as other containers do, one picture a packet."""
COPIED_CONTAINERS = ("mov,mp4", "matroska,webm")
"""Demuxers whose packets carry presentation times and name their keyframes."""
MAX_FPS_DENOMINATOR = 1001


@dataclass(frozen=True)
class Cut:
    """One clip to be cut.

    Attributes:
        start_frame: First frame.
        end_frame: Exclusive.
        fps: Of the source.
        out: File to write (.mp4).
        size: (height, width) to resize to; None keeps the source's.
        out_fps: Frame rate to convert to; None keeps every frame.
    """

    start_frame: int
    end_frame: int
    fps: float
    out: Path
    size: tuple[int, int] | None = None
    out_fps: float | None = None

    @property
    def num_frames(self) -> int:
        """Frames of the source."""
        return self.end_frame - self.start_frame

    @property
    def num_out_frames(self) -> int:
        """Frames to be written."""
        return len(resampled(self.num_frames, self.fps, self.out_fps)) if self.out_fps else self.num_frames

    @property
    def changes_pictures(self) -> bool:
        """Whether it asks for other pictures than the source's."""
        return self.size is not None or self.out_fps is not None


@dataclass(frozen=True, slots=True)
class _PacketFacts:
    pts: int
    is_keyframe: bool


def copy_cuts(path: Path, cuts: Sequence[Cut]) -> list[Cut]:
    """Write those cuts whose frames can be copied as they are encoded; the others are left alone.

    A cut can be copied when it begins with a keyframe and its packets, in the order in which they are decoded, are
    exactly its frames. Every copy is decoded once to see that it holds them. Sound is left out.

    Args:
        path: The source video.
        cuts: In any order; those that change pictures are never copied.

    Returns:
        The cuts that are written, in the order given.
    """
    wanted = [cut for cut in cuts if not cut.changes_pictures]
    packets = _packets(path) if wanted else None
    if packets is None:
        return []
    order = _presentation_order(packets)
    ranges = {}
    for cut in wanted:
        found = _packet_range(packets, order, cut)
        if found is not None:
            ranges[cut.out] = found
    _copy(path, [(cut, *ranges[cut.out]) for cut in wanted if cut.out in ranges])
    info = probe(path)
    return [cut for cut in wanted if cut.out in ranges and _is_whole(cut, info)]


def encode_cuts(path: Path, cuts: Sequence[Cut], *, codec: str, crf: int) -> dict[Path, UnreadableMedia]:
    """Write cuts frame by frame; the source is decoded once, as far as the last of them.

    Args:
        path: The source video.
        cuts: In any order.
        codec, crf: As `components.video.write_video` takes them.

    Returns:
        Why a cut could not be written, by its file; no other file is missing.
    """
    failed: dict[Path, UnreadableMedia] = {}
    for group in _without_overlap(cuts):
        size = group[0].size
        frames = decode_spans(path, [(cut.start_frame, cut.end_frame) for cut in group], size)
        damage: UnreadableMedia | None = None
        for cut in group:
            try:
                if damage is None:
                    write_video(cut.out, _frames_of(cut, frames), cut.out_fps or cut.fps, codec=codec, crf=crf)
                    continue
            except UnreadableMedia as error:
                damage = error
                cut.out.unlink(missing_ok=True)
            failed[cut.out] = damage
    return failed


def resampled(num_frames: int, fps: float, out_fps: float) -> list[int]:
    """Number of the source frame that each frame of another rate shows: the one on screen at the middle of its time.

    Args:
        num_frames: Of the source, N.
        fps: Of the source.
        out_fps: Wanted.

    Returns:
        max(1, round(N out_fps / fps)) numbers in [0, N), ascending.
    """
    ratio = Fraction(fps).limit_denominator(MAX_FPS_DENOMINATOR) / Fraction(out_fps).limit_denominator(
        MAX_FPS_DENOMINATOR
    )
    count = max(1, round(num_frames / ratio))
    return [min(num_frames - 1, int((number + Fraction(1, 2)) * ratio)) for number in range(count)]


def _frames_of(cut: Cut, frames: Iterator[Frames]) -> Iterator[Frames]:
    """The frames to write, each as often as it is shown."""
    shown = resampled(cut.num_frames, cut.fps, cut.out_fps) if cut.out_fps else range(cut.num_frames)
    times = [0] * cut.num_frames
    for number in shown:
        times[number] += 1
    for count in times:
        frame = next(frames)
        for _ in range(count):
            yield frame


def _without_overlap(cuts: Iterable[Cut]) -> list[list[Cut]]:
    """Groups, each of one size and in the order of the source, so that one pass writes all of a group."""
    groups: list[list[Cut]] = []
    for cut in sorted(cuts, key=lambda cut: (cut.start_frame, cut.end_frame)):
        for group in groups:
            if group[-1].end_frame <= cut.start_frame and group[0].size == cut.size:
                group.append(cut)
                break
        else:
            groups.append([cut])
    return groups


def _packets(path: Path) -> list[_PacketFacts] | None:
    """Every packet in decoding order, or None when they do not stand for one frame each."""
    found = []
    try:
        with _opened(path) as container:
            stream = _best(container)
            if stream.codec_context.codec.canonical_name not in COPIED_CODECS:
                return None
            if not container.format.name.startswith(COPIED_CONTAINERS):
                return None
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if _is_odd(packet) or packet.pts is None:
                    return None
                found.append(_PacketFacts(packet.pts, packet.is_keyframe))
    except av.FFmpegError:
        return None
    # A stream that does not begin with what it shows first may lose frames in the decoder: numbers would be others.
    if not found or not found[0].is_keyframe or min(packet.pts for packet in found) != found[0].pts:
        return None
    return found if len({packet.pts for packet in found}) == len(found) else None


def _is_odd(packet: Packet[VideoStream]) -> bool:
    """Whether it is no picture to be shown as it is, or brings parameters that differ from the stream's."""
    return packet.is_discard or packet.is_corrupt or packet.has_sidedata("new_extradata")


def _presentation_order(packets: Sequence[_PacketFacts]) -> list[int]:
    """Packet of each frame."""
    return sorted(range(len(packets)), key=lambda index: packets[index].pts)


def _packet_range(packets: Sequence[_PacketFacts], order: Sequence[int], cut: Cut) -> tuple[int, int] | None:
    """First packet and the one after the last, when they are exactly the frames of the cut."""
    inside = order[cut.start_frame : cut.end_frame]
    if len(inside) < cut.num_frames or not packets[inside[0]].is_keyframe:
        return None
    first, last = min(inside), max(inside)
    return (first, last + 1) if first == inside[0] and last - first == cut.num_frames - 1 else None


def _copy(path: Path, cuts: Sequence[tuple[Cut, int, int]]) -> None:
    """Write packets [first, end) of each cut, timed from zero on."""
    waiting = sorted(cuts, key=lambda item: item[1])
    while waiting:
        later: list[tuple[Cut, int, int]] = []
        with _opened(path) as container:
            stream = _best(container)
            numbered = enumerate(packet for packet in container.demux(stream) if packet.size)
            position = 0
            for cut, first, end in waiting:
                if first < position:  # overlaps the one before: another pass
                    later.append((cut, first, end))
                    continue
                packets = []
                for position, packet in numbered:
                    if position >= first:
                        packets.append(packet)
                    if position == end - 1:
                        break
                position = end
                _mux(cut.out, stream, packets)
        waiting = later


def _mux(out: Path, stream: VideoStream, packets: Sequence[Packet[VideoStream]]) -> None:
    options = {"movflags": "faststart", "fflags": "bitexact"}
    with av.open(str(out), "w", options=options) as container:
        copy = container.add_stream_from_template(stream, opaque=True)
        zero = min((packet.dts for packet in packets if packet.dts is not None), default=0)
        for packet in packets:
            packet.stream = copy
            if packet.pts is not None:
                packet.pts -= zero
            if packet.dts is not None:
                packet.dts -= zero
            container.mux(packet)


def _is_whole(cut: Cut, source: VideoInfo) -> bool:
    """Whether a copy decodes to its frames, upright as the source; if not it is removed."""
    try:
        info = probe(cut.out)
        whole = (info.width, info.height, info.rotation_deg) == (source.width, source.height, source.rotation_deg)
        if whole:
            with _opened(cut.out) as container:
                whole = sum(1 for _ in container.decode(_best(container))) == cut.num_frames
    except (UnreadableMedia, av.FFmpegError):
        whole = False
    if not whole:
        cut.out.unlink(missing_ok=True)
    return whole


def _opened(path: Path) -> av.container.InputContainer:
    return av.open(
        str(path),
        metadata_errors="ignore",
        container_options={"format_whitelist": VIDEO_DEMUXERS, "protocol_whitelist": "file"},
    )


def _best(container: av.container.InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    assert isinstance(stream, VideoStream), "only videos are cut"
    stream.thread_type = "AUTO"
    return stream
