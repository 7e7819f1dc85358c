"""From prompts to latents, and from clip to clip: text conditioning, guidance, and long videos.

Source: Open-Sora 1.1. Shapes: latents (B, C, T, H, W), pixels (B, 3, T, H, W); frame masks (B, T), 1 = generate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.masks import MaskGroup, apply_mask_strategy, parse_mask_strategy
from model.process import Denoiser, LatentSampler, LatentSize

Network = Callable[..., Tensor]
"""A network with the signature of `STDiT2.forward`."""


class TextConditionedDenoiser:
    """A network with its text and clip information filled in, callable as `denoise(x, timesteps, x_mask)`.

    Args:
        network: called as network(x, timesteps, text_features, mask=, x_mask=, **clip_info).
        text_features: (N, M, Cy) or (N, 1, M, Cy).
        text_mask: (N, M), nonzero = the token counts; None = all do.
        clip_info: num_frames, height, width, ar and fps as the network takes them, each (N,).
    """

    def __init__(
        self, network: Network, text_features: Tensor, text_mask: Tensor | None = None, **clip_info: Tensor
    ) -> None:
        self.network = network
        self.text_features = text_features[:, None] if text_features.ndim == 3 else text_features
        self.text_mask = text_mask
        self.clip_info = clip_info

    def __call__(self, x: Tensor, timesteps: Tensor, x_mask: Tensor | None = None) -> Tensor:
        """x (N, C, T, H, W), timesteps (N,), x_mask (N, T) or None -> (N, Cout, T, H, W)."""
        return self.network(x, timesteps, self.text_features, mask=self.text_mask, x_mask=x_mask, **self.clip_info)


class ClassifierFreeGuidance:
    """Guided denoiser: conditional and null text in one batched pass over the same latents.

    It takes N latents, or 2N as the reference's sampling loop holds them: then the second half is ignored on
    the way in, and on the way out carries the null text's own unguided channels.

    Args:
        network: as in `TextConditionedDenoiser`.
        text_features: (N, M, Cy) or (N, 1, M, Cy), of the prompts.
        text_mask: (N, M); the null half uses the prompt's mask too, as in training, unless it has its own.
        scale: guidance scale; 1 follows the prompt unguided.
        cfg_channel: how many leading output channels are guided; None = as many as the latents have, all that is
            predicted but sigma. Open-Sora 1.1's configurations guide 3 of 4.
        null_features: (M', Cy) or (N, M, Cy), text to steer away from; None = the network's own null text,
            `network.y_embedder.y_embedding`.
        null_mask: (N, M), of that text.
        clip_info: num_frames, height, width, ar and fps, each (N,).
    """

    def __init__(
        self,
        network: Network,
        text_features: Tensor,
        text_mask: Tensor | None = None,
        *,
        scale: float = 4.0,
        cfg_channel: int | None = None,
        null_features: Tensor | None = None,
        null_mask: Tensor | None = None,
        **clip_info: Tensor,
    ) -> None:
        features = text_features[:, None] if text_features.ndim == 3 else text_features
        null = _null_text(network, features) if null_features is None else _as_null(null_features, features)
        self.num_prompts = features.shape[0]
        self.scale = scale
        self.cfg_channel = cfg_channel
        self._denoise = TextConditionedDenoiser(
            network,
            torch.cat([features, null]),
            None if text_mask is None else torch.cat([text_mask, text_mask if null_mask is None else null_mask]),
            **{name: torch.cat([value, value]) for name, value in clip_info.items()},
        )

    def __call__(self, x: Tensor, timesteps: Tensor, x_mask: Tensor | None = None) -> Tensor:
        """x (N or 2N, C, T, H, W), timesteps and x_mask with as many rows (or N) -> x's rows, Cout channels.

        Raises:
            ValueError: when x has neither N nor 2N rows.
        """
        count = self.num_prompts
        if x.shape[0] not in (count, 2 * count):
            raise ValueError(f"Guidance over {count} prompts takes {count} or {2 * count} latents, got {x.shape[0]}.")
        seen = [None if value is None else torch.cat([value[:count]] * 2) for value in (x, timesteps, x_mask)]
        x_both, timesteps_both, x_mask_both = seen
        assert x_both is not None and timesteps_both is not None
        cfg_channel = x.shape[1] if self.cfg_channel is None else self.cfg_channel
        guided = guide(self._denoise(x_both, timesteps_both, x_mask_both), self.scale, cfg_channel)
        return guided[: x.shape[0]]


def guide(output: Tensor, scale: float, cfg_channel: int | None = None) -> Tensor:
    """Classifier-free guidance on a doubled batch (Open-Sora 1.1): uncond + scale (cond - uncond).

    Args:
        output: (2N, Cout, T, H, W), the conditional half first.
        scale: guidance scale.
        cfg_channel: how many leading channels are guided, in both halves alike; the others each half keeps.
            None = Cout // 2.

    Returns:
        (2N, Cout, T, H, W).

    Raises:
        ValueError: when there are fewer channels than cfg_channel.
    """
    channels = output.shape[1] // 2 if cfg_channel is None else cfg_channel
    if not 0 <= channels <= output.shape[1]:
        raise ValueError(f"cfg_channel={channels}, but the network has {output.shape[1]} output channels.")
    conditional, unconditional = output[:, :channels].chunk(2)
    guided = unconditional + scale * (conditional - unconditional)
    return torch.cat([torch.cat([guided, guided]), output[:, channels:]], dim=1)


def _null_text(network: Network, features: Tensor) -> Tensor:
    embedding: Tensor = network.y_embedder.y_embedding  # type: ignore[attr-defined]
    return _as_null(embedding, features)


def _as_null(null: Tensor, features: Tensor) -> Tensor:
    """Null text cut to the prompts' tokens and repeated for each, (N, 1, M, Cy)."""
    null = null.reshape(-1, 1, *null.shape[-2:])[:, :, : features.shape[2]]
    return null.to(features).expand_as(features)


def sample_latents(
    process: LatentSampler,
    denoise: Denoiser,
    latents: Tensor,
    mask: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    noise: Iterable[Tensor] | None = None,
    keep_condition_frames: bool = False,
    size: LatentSize | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Run a process's sampling loop.

    With guidance, IDDPM keeps the reference's doubled batch, so that a seed gives the reference's random numbers:
    every noise tensor has 2N rows, of which the second half makes no difference to the result.

    Args:
        process: `IDDPM(num_sampling_steps)`, `RectifiedFlow(num_sampling_steps)` or a `DPMSolver`.
        denoise: `ClassifierFreeGuidance`, `TextConditionedDenoiser`, or any denoising callable.
        latents: (N, C, T, H, W), standard normal, references already written in (`apply_mask_strategy`).
        mask: (N, T) float, 1 = generate, 0 = keep, between = edit ratio.
        generator: source of the sampler's noise.
        noise: recorded noise to replay instead.
        keep_condition_frames: leave frames with mask 0 exactly as they are.
        size: (latent frames, height, width in pixels), for flows shifted by resolution.
        on_step: called with the number of steps done.

    Returns:
        (N, C, T, H, W) clean latents.
    """
    doubled = isinstance(denoise, ClassifierFreeGuidance) and process.draws_noise_for_both_halves
    copies = 2 if doubled else 1
    sampled = process.sample(
        denoise,
        torch.cat([latents] * copies),
        mask=None if mask is None else torch.cat([mask] * copies),
        generator=generator,
        noise=noise,
        keep_condition_frames=keep_condition_frames,
        size=size,
        on_step=on_step,
    )
    return sampled[: latents.shape[0]]


# --- long videos -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratedClip:
    """One clip of a long video.

    Attributes:
        loop_index: position in the video, from 0.
        latents: (B, C, T, H, W), as sampled.
        pixels: (B, 3, T, H, W), decoded.
        mask: (B, T) float32, what was generated (1), kept (0) or edited.
        strategies: each sample's mask strategy as it stood for this clip.
        num_repeated_frames: how many first frames repeat the end of the clip before.
    """

    loop_index: int
    latents: Tensor
    pixels: Tensor
    mask: Tensor
    strategies: tuple[str | None, ...]
    num_repeated_frames: int

    @property
    def new_pixels(self) -> Tensor:
        """The frames this clip adds to the video, (B, 3, T - num_repeated_frames, H, W)."""
        return self.pixels[:, :, self.num_repeated_frames :]


class Continuation:
    """What the clips of a long video are conditioned on, one after the other (Open-Sora 1.1's autoregressive loop).

    Each clip after the first has the last frames of the one before written over its first frames. Groups for that
    clip in the given strategies act first, so the continuation wins where they overlap. Of earlier clips only those
    stay in memory that a group of a later clip names.

    Args:
        references: per sample its references (C, T_ref, H, W).
        strategies: per sample its mask strategy, or None.
        condition_frame_length: c, frames carried from clip to clip.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Tensor] | None],
        strategies: Sequence[str | None],
        condition_frame_length: int,
    ) -> None:
        self.condition_frame_length = condition_frame_length
        self.strategies: list[str | None] = list(strategies)
        self._references = [list(own or ()) for own in references]
        self._named = [_named_clips(own, strategy) for own, strategy in zip(self._references, strategies, strict=True)]
        self._held: list[list[int]] = [[] for _ in self._references]
        self._loop_index = 0

    def write(self, latents: Tensor) -> Tensor:
        """Write this clip's conditions into its noise, in place; returns the mask (B, T).

        Raises:
            ValueError: when c does not leave a frame to generate, or a strategy cannot be carried out.
        """
        if self._loop_index:
            _check_carried(self.condition_frame_length, latents.shape[2])
        return apply_mask_strategy(latents, self._references, self.strategies, self._loop_index)

    def carry(self, encoded: Tensor) -> None:
        """Go on to the next clip.

        Args:
            encoded: (B, C, T', H, W), latents of the clip that has ended: the whole clip where a strategy names it
                (`needs_whole_clip`), else its last c frames suffice.
        """
        self._loop_index += 1
        for sample, latents in enumerate(encoded):
            own, named, held = self._references[sample], self._named[sample], self._held[sample]
            for index in [index for index in held if named.get(index, -1) < self._loop_index]:
                own[index] = own[index][:, :0].clone()
                held.remove(index)
            held.append(len(own))
            own.append(latents)
            self.strategies[sample] = _continue_strategy(
                self.strategies[sample], self._loop_index, len(own) - 1, self.condition_frame_length
            )

    @property
    def needs_whole_clip(self) -> bool:
        """Whether a group of a later clip names the clip that is being made."""
        return any(len(own) in named for own, named in zip(self._references, self._named, strict=True))

    @property
    def held_frames(self) -> int:
        """Latent frames in memory, over all samples and references."""
        return sum(reference.shape[1] for own in self._references for reference in own)


def _named_clips(references: Sequence[Tensor], strategy: str | None) -> dict[int, int]:
    """Which clips of the video itself some groups name, by their index as a reference, and the last loop to do so."""
    named: dict[int, int] = {}
    for group in parse_mask_strategy(strategy):
        known = len(references) + group.loop_index
        index = group.reference_index + (known if group.reference_index < 0 else 0)
        if index >= len(references):
            named[index] = max(group.loop_index, named.get(index, -1))
    return named


def _check_carried(length: int, num_frames: int) -> None:
    if not 0 <= length < num_frames:
        raise ValueError(
            f"condition_frame_length must lie between 0 and {num_frames - 1} for clips of {num_frames} frames, "
            f"got {length}."
        )


def extend_video(
    sample: Callable[[Tensor, Tensor, int], Tensor],
    draw_latents: Callable[[int], Tensor],
    *,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    num_loops: int,
    condition_frame_length: int,
    references: Sequence[Sequence[Tensor] | None] | None = None,
    strategies: Sequence[str | None] | None = None,
) -> Iterator[GeneratedClip]:
    """Generate a long video clip by clip (see `Continuation`), decoding whole clips.

    Args:
        sample: `sample(latents, mask (B, T), loop_index) -> latents`; the loop index selects the text.
        draw_latents: `draw_latents(loop_index)` -> fresh noise (B, C, T, H, W).
        encode: pixels (B, 3, T, H, W) -> latents; one latent frame per frame.
        decode: latents -> pixels.
        num_loops: number of clips L; the video has L (T - c) + c frames.
        condition_frame_length: c, frames carried from clip to clip.
        references: per sample its references (C, T_ref, H, W), or None.
        strategies: per sample its mask strategy, or None.

    Yields:
        The clips in order; `join_clips` makes the video of them.

    Raises:
        ValueError: when c does not leave a frame to generate, or a strategy cannot be carried out.
    """
    continuation: Continuation | None = None
    for loop_index in range(num_loops):
        latents = draw_latents(loop_index)
        if continuation is None:
            nothing = [None] * latents.shape[0]
            continuation = Continuation(references or nothing, strategies or nothing, condition_frame_length)
            if num_loops > 1:
                _check_carried(condition_frame_length, latents.shape[2])
        mask = continuation.write(latents)
        sampled = sample(latents, mask, loop_index)
        pixels = decode(sampled)
        repeated = condition_frame_length if loop_index else 0
        yield GeneratedClip(loop_index, sampled, pixels, mask, tuple(continuation.strategies), repeated)
        if loop_index + 1 < num_loops:
            continuation.carry(encode(pixels))


def _continue_strategy(strategy: str | None, loop_index: int, reference_index: int, length: int) -> str:
    """Add the group that writes the end of the previous clip over the beginning of this one."""
    group = MaskGroup(loop_index, reference_index, reference_start=-length, target_start=0, length=length).to_text()
    return group if strategy is None else f"{strategy};{group}"


def join_clips(clips: Iterable[GeneratedClip]) -> Tensor:
    """One video of all clips, the repeated frames once: (B, 3, L (T - c) + c, H, W)."""
    return torch.cat([clip.new_pixels for clip in clips], dim=2)
