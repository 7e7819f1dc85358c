"""Frame masks: the training mixture, and the mask strategies a person writes for sampling.

Source: Open-Sora 1.1. Everywhere 1/True = the frame is generated, 0/False = it is a condition frame.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.mask_config import MaskRatios, quarter_too_short

# --- training ----------------------------------------------------------------------------------------------


def sample_frame_masks(
    ratios: MaskRatios | Mapping[str, float], num_frames: int, batch_size: int, rng: random.Random
) -> Tensor:
    """Draw one training mask per sample.

    Per sample the kind is drawn first, walking the ratios in their order, then a quarter kind's length, then a
    random kind's position or the interpolating kind's first given frame.

    Args:
        ratios: share of each kind; a mapping is walked in its written order.
        num_frames: latent frames T. Single frames are always generated.
        batch_size: B.
        rng: source of the draws.

    Returns:
        (B, T) bool, True = generate.

    Raises:
        ValueError: a quarter kind came up for 2 or 3 frames, or the mapping is no valid mixture.
    """
    if not isinstance(ratios, MaskRatios):
        MaskRatios.model_validate({"mask_no": 0.0, **ratios})
    shares = list(ratios.items())
    rows = [_mask_of_kind(_draw_kind(shares, rng), num_frames, rng) for _ in range(batch_size)]
    return torch.tensor(rows, dtype=torch.bool).reshape(batch_size, num_frames)


def _draw_kind(shares: Sequence[tuple[str, float]], rng: random.Random) -> str:
    drawn = rng.random()
    cumulative = 0.0
    for kind, share in shares:
        cumulative += share
        if drawn < cumulative:
            return kind
    return "mask_no"


def _mask_of_kind(kind: str, num_frames: int, rng: random.Random) -> list[bool]:
    mask = [True] * num_frames
    if num_frames <= 1 or kind == "mask_no":
        return mask
    if kind == "mask_interpolate":
        phase = rng.randint(0, 1)
        return [index % 2 != phase for index in range(num_frames)]
    extent, _, place = kind.removeprefix("mask_").partition("_")
    length = 1
    if extent == "quarter":
        if num_frames < 4:
            raise ValueError(quarter_too_short(kind, num_frames))
        length = rng.randint(1, num_frames // 4)
    if place == "random":
        start = rng.randint(0, num_frames - length)
        mask[start : start + length] = [False] * length
    if place in ("head", "head_tail"):
        mask[:length] = [False] * length
    if place in ("tail", "head_tail"):
        mask[-length:] = [False] * length
    return mask


# --- mask strategies ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskGroup:
    """One group of a mask strategy: copy reference frames over frames of a clip.

    Attributes:
        loop_index: the clip (of a long video) in which the group acts.
        reference_index: which of the prompt's references; negative counts from the newest.
        reference_start: first frame copied; negative counts from the reference's end.
        target_start: first frame overwritten; negative counts from the clip's end.
        length: number of frames; a single reference frame fills them all.
        edit_ratio: 0 keeps the copied frames, between 0 and 1 re-noises them that far; 1 leaves the frames to be
            generated, from the copied ones in place of noise.
    """

    loop_index: int
    reference_index: int = 0
    reference_start: int = 0
    target_start: int = 0
    length: int = 1
    edit_ratio: float = 0.0

    def to_text(self) -> str:
        """The group as it is written in a strategy; a zero edit ratio is left out."""
        numbers = (self.loop_index, self.reference_index, self.reference_start, self.target_start, self.length)
        edit = f",{self.edit_ratio:g}" if self.edit_ratio else ""
        return ",".join(map(str, numbers)) + edit


_GROUP_FIELDS = ("loop id", "reference id", "reference start", "target start", "length", "edit ratio")


def parse_mask_strategy(strategy: str | None) -> list[MaskGroup]:
    """Read "loop,reference,reference start,target start,length,edit ratio;..." into groups.

    Missing trailing numbers take the defaults of `MaskGroup`; None means no groups.

    Raises:
        ValueError: naming the group and what is wrong with it.
    """
    if strategy is None:
        return []
    if not strategy.strip():
        raise ValueError("The mask strategy is empty; leave it out (None) to condition on nothing.")
    texts = strategy.split(";")
    return [_parse_group(text, f"Group {i} of mask strategy {strategy!r}") for i, text in enumerate(texts, start=1)]


def _parse_group(text: str, where: str) -> MaskGroup:
    parts = text.split(",")
    if len(parts) > len(_GROUP_FIELDS):
        raise ValueError(f"{where} has {len(parts)} numbers; at most six are known: {', '.join(_GROUP_FIELDS)}.")
    integers: list[int] = []
    for name, part in zip(_GROUP_FIELDS[:5], parts, strict=False):
        try:
            integers.append(int(part))
        except ValueError:
            raise ValueError(f"{where}: the {name} must be a whole number, got {part!r}.") from None
    group = MaskGroup(*integers)
    if len(parts) == len(_GROUP_FIELDS):
        group = replace(group, edit_ratio=_parse_edit_ratio(parts[5], where))
    if group.loop_index < 0:
        raise ValueError(f"{where}: the loop id must not be negative, got {group.loop_index}.")
    if group.length < 0:
        raise ValueError(f"{where}: the length must not be negative, got {group.length}.")
    return group


def _parse_edit_ratio(text: str, where: str) -> float:
    try:
        edit_ratio = float(text)
    except ValueError:
        edit_ratio = math.nan
    if not 0 <= edit_ratio <= 1:
        raise ValueError(f"{where}: the edit ratio must be a number from 0 to 1, got {text!r}.")
    return edit_ratio


def apply_mask_strategy(
    latents: Tensor,
    references: Sequence[Sequence[Tensor] | None],
    strategies: Sequence[str | None],
    loop_index: int = 0,
) -> Tensor:
    """Write reference frames into latents, in place, and say which frames to generate.

    Of each sample's groups those of this loop act, in order; later ones win where they overlap.

    Args:
        latents: (B, C, T, H, W); changed in place.
        references: per sample its references, each (C, T_ref, H, W), or None.
        strategies: per sample its mask strategy, or None.
        loop_index: which clip of a long video this is.

    Returns:
        mask (B, T) float32 on the latents' device: 1 = generate, else the edit ratio.

    Raises:
        ValueError: naming sample and group, when a group is malformed, its reference does not exist, or reference
            and target frames differ in number.
    """
    batch_size, num_frames = latents.shape[0], latents.shape[2]
    if len(references) != batch_size or len(strategies) != batch_size:
        raise ValueError(
            f"{batch_size} samples need as many reference lists and mask strategies, got {len(references)} and "
            f"{len(strategies)}."
        )
    mask = torch.ones(batch_size, num_frames, dtype=torch.float32, device=latents.device)
    for sample, strategy in enumerate(strategies):
        for number, group in enumerate(parse_mask_strategy(strategy), start=1):
            if group.loop_index != loop_index:
                continue
            where = f"Group {number} of mask strategy {strategy!r} (sample {sample})"
            reference = _find_reference(references[sample] or (), group, where)
            copied, target = _matching_slices(reference, num_frames, group, where)
            latents[sample, :, target] = reference[:, copied].to(latents)
            mask[sample, target] = group.edit_ratio
    return mask


def check_strategy(strategy: str | None, reference_frames: Sequence[int], num_frames: int, loops: int = 1) -> None:
    """Refuse, before any work, a strategy that `apply_mask_strategy` could not carry out.

    Args:
        strategy: or None, which is always right.
        reference_frames: length of every reference.
        num_frames: of a clip.
        loops: number of clips; each after the first may also name the clips before it.

    Raises:
        ValueError: naming the group and what is wrong with it.
    """
    for number, group in enumerate(parse_mask_strategy(strategy), start=1):
        where = f"Group {number} of mask strategy {strategy!r}"
        if group.loop_index >= loops:
            raise ValueError(f"{where} acts in loop {group.loop_index}, but there are {loops} (counted from 0).")
        lengths = [*reference_frames, *[num_frames] * group.loop_index]
        reference = _find_reference([torch.empty(0, length) for length in lengths], group, where)
        _matching_slices(reference, num_frames, group, where)


def _find_reference(references: Sequence[Tensor], group: MaskGroup, where: str) -> Tensor:
    if not -len(references) <= group.reference_index < len(references):
        raise ValueError(
            f"{where} asks for reference {group.reference_index}, but there are {len(references)} (counted from 0)."
        )
    return references[group.reference_index]


def _matching_slices(reference: Tensor, num_frames: int, group: MaskGroup, where: str) -> tuple[slice, slice]:
    copied = _frame_slice(group.reference_start, group.length, reference.shape[1], f"{where}: the reference")
    target = _frame_slice(group.target_start, group.length, num_frames, f"{where}: the clip")
    num_copied, num_target = copied.stop - copied.start, target.stop - target.start
    if num_copied not in (1, num_target):
        raise ValueError(
            f"{where} copies {num_copied} reference frames onto {num_target} frames of the clip; the reference has "
            f"{reference.shape[1]}, the clip {num_frames}. Use equally many, or a single reference frame."
        )
    return copied, target


def _frame_slice(start: int, length: int, num_frames: int, what: str) -> slice:
    """Frames start..start+length-1, cut off at the end; a negative start counts from there."""
    first = start + num_frames if start < 0 else start
    if length == 0:
        return slice(0, 0)
    if not 0 <= first < num_frames:
        raise ValueError(f"{what} has {num_frames} frames, none of them at position {start}.")
    return slice(first, min(first + length, num_frames))
