"""The tasks of Open-Sora 1.1, each as the mask strategy that carries it out.

A strategy is `loop,reference,reference start,target start,length,edit ratio;...` (see `model.masks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from components.errors import KinoflowError
from components.generation.settings import GenerationConfig, TaskName
from components.media import Frames
from model.masks import MaskGroup

TASKS: tuple[TaskName, ...] = get_args(TaskName)
FEW_REFERENCES: Mapping[TaskName, tuple[int, int | None]] = {
    "text_to_image": (0, 0), "text_to_video": (0, 0), "image_to_video": (1, 2), "loop": (1, 1),
    "extend_forward": (1, 1), "extend_backward": (1, 1), "connect": (2, 2), "edit": (1, 1), "interpolate": (1, None),
}  # fmt: skip
"""How many references a task takes, at least and at most."""


@dataclass(frozen=True)
class Room:
    """The video that references are put into.

    Attributes:
        num_frames: of one clip, T.
        loops: number of clips.
        carried: frames that each clip hands on to the next.
        lengths: frames of every reference.
    """

    num_frames: int
    loops: int
    carried: int
    lengths: tuple[int, ...]
    edit_ratio: float
    at: Literal["start", "end"]

    @property
    def last(self) -> int:
        """Index of the last clip."""
        return self.loops - 1

    @property
    def stride(self) -> int:
        """New frames of each clip after the first."""
        return self.num_frames - self.carried


def arrange(
    task: TaskName,
    references: Sequence[Frames],
    num_frames: int,
    *,
    condition_frame_length: int | None = None,
    loops: int = 1,
    edit_ratio: float = 0.4,
    reference_at: Literal["start", "end"] = "start",
) -> tuple[tuple[Frames, ...], str | None]:
    """Say where the references of a task go.

    Args:
        task: one of `TASKS`.
        references: (T_ref, H, W, 3) uint8 each, a still with one frame.
        num_frames: frames of one clip.
        condition_frame_length: frames taken of a video that is extended or connected, and handed on between clips;
            a quarter of the clip when absent.
        loops: clips in a row; what belongs at the end goes into the last one.
        edit_ratio: of `edit`.
        reference_at: where `image_to_video` puts a single reference.

    Returns:
        The references and the mask strategy, None where there is nothing to condition on.

    Raises:
        KinoflowError: too many or too few references, or frames that they do not have.
    """
    fewest, most = FEW_REFERENCES[task]
    count = len(references)
    if count < fewest or (most is not None and count > most):
        wanted = str(fewest) if fewest == most else f"{fewest} or more" if most is None else f"{fewest} or {most}"
        raise KinoflowError(f"{task} takes {wanted} reference{'' if wanted == '1' else 's'}, not {count}.")
    carried = max(1, num_frames // 4) if condition_frame_length is None else condition_frame_length
    room = Room(num_frames, loops, carried, tuple(map(len, references)), edit_ratio, reference_at)
    groups = _ARRANGEMENTS[task](room) if task in _ARRANGEMENTS else []
    return tuple(references), ";".join(group.to_text() for group in groups) or None


def arrangement(config: GenerationConfig, references: Sequence[Frames]) -> tuple[tuple[Frames, ...], str | None]:
    """The references and the strategy of a configuration: its own strategy, or its task's.

    Raises:
        KinoflowError: as `arrange`; references that neither a task nor a strategy has a use for.
    """
    if config.mask_strategy is not None:
        return tuple(references), config.mask_strategy
    return arrange(
        config.task, references, config.clip_frames, condition_frame_length=config.condition_frame_length,
        loops=config.loops, edit_ratio=config.edit_ratio, reference_at=config.reference_at,
    )  # fmt: skip


def _image_to_video(room: Room) -> list[MaskGroup]:
    start = MaskGroup(0, 0)
    if len(room.lengths) == 2:
        _at_least(2, room, "with both ends given")
        return [start, MaskGroup(room.last, 1, 0, -1)]
    return [start] if room.at == "start" else [MaskGroup(room.last, 0, 0, -1)]


def _loop(room: Room) -> list[MaskGroup]:
    _at_least(3, room, "to leave and come back")
    return [MaskGroup(0, 0), MaskGroup(room.last, 0, 0, -1)]


def _extend_forward(room: Room) -> list[MaskGroup]:
    length = _taken(room, 0)
    return [MaskGroup(0, 0, -length, 0, length)]


def _extend_backward(room: Room) -> list[MaskGroup]:
    length = _taken(room, 0)
    return [MaskGroup(0, 0, 0, -length, length)]


def _connect(room: Room) -> list[MaskGroup]:
    first, second = _taken(room, 0), _taken(room, 1)
    if room.loops == 1 and first + second >= room.num_frames:
        raise KinoflowError(
            f"connect keeps {first} and {second} frames and so needs a clip of at least {first + second + 1}, "
            f"not {room.num_frames}; ask for more frames or a smaller condition_frame_length."
        )
    return [MaskGroup(0, 0, -first, 0, first), MaskGroup(room.last, 1, 0, -second, second)]


def _edit(room: Room) -> list[MaskGroup]:
    """Every clip edits its own part of the video; the frames handed on are then kept, not edited again."""
    if room.lengths[0] == 1:
        return [MaskGroup(loop, 0, 0, 0, room.num_frames, room.edit_ratio) for loop in range(room.loops)]
    groups = []
    for loop in range(room.loops):
        start = loop * room.stride
        length = min(room.num_frames, room.lengths[0] - start)
        if length > 0:
            groups.append(MaskGroup(loop, 0, start, 0, length, room.edit_ratio))
    return groups


def _interpolate(room: Room) -> list[MaskGroup]:
    """Given frames evenly spread over the video: stills one by one, or the frames of one video."""
    single = len(room.lengths) == 1
    count = room.lengths[0] if single else len(room.lengths)
    frames = room.num_frames + room.last * room.stride
    step = (frames - 1) // (count - 1) if count > 1 else 0
    if step < 2:
        raise KinoflowError(
            f"interpolate needs two or more frames with room between them: {count} given ones take a video of at "
            f"least {max(3, 2 * count - 1)} frames, not {frames}."
        )
    groups = []
    for loop in range(room.loops):
        for index in range(count):
            target = index * step - loop * room.stride
            if 0 <= target < room.num_frames:
                reference, start = (0, index) if single else (index, 0)
                groups.append(MaskGroup(loop, reference, start, target))
    return groups


_ARRANGEMENTS: Mapping[TaskName, Callable[[Room], list[MaskGroup]]] = {
    "image_to_video": _image_to_video,
    "loop": _loop,
    "extend_forward": _extend_forward,
    "extend_backward": _extend_backward,
    "connect": _connect,
    "edit": _edit,
    "interpolate": _interpolate,
}


def _taken(room: Room, reference: int) -> int:
    """Frames taken of a reference: those that clips hand on, fewer where it has fewer."""
    length = min(max(1, room.carried), room.lengths[reference])
    _at_least(length + 1, room, f"beside the {length} given ones")
    return length


def _at_least(frames: int, room: Room, why: str) -> None:
    if room.num_frames < frames:
        raise KinoflowError(f"This takes a clip of at least {frames} frames {why}, not {room.num_frames}.")
