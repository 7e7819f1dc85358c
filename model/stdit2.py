"""The ST-DiT-2 network: a diffusion transformer over video latents, as in Open-Sora 1.1.

Shapes: B batch, C channels, T latent frames, S tokens per frame, D width, M text tokens.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import Attention, CrossAttention, PackedText, PaddedText, RotaryEmbedding, RotaryTable
from model.config import STDiT2Config
from model.cpu_kernels import multiply_add
from model.initialization import initialize_weights
from model.kernels import available_kernels, choose_packed_kernel
from model.layers import (
    CaptionEmbedder,
    FinalLayer,
    Mlp,
    PatchEmbed3D,
    PositionEmbedding2D,
    SizeEmbedder,
    TimestepEmbedder,
    modulated_norm,
    sinusoidal_embedding,
    tile_batch,
)

# Up to this many scores per head, one padded product is faster than a loop over the samples.
PADDED_TEXT_MAX_SCORES = 2**18


class STDiT2Block(nn.Module):
    """Spatial attention, temporal attention, cross-attention and MLP, each added to the tokens.

    Args:
        hidden_size: width D.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
        qk_norm: normalise q and k of both self-attentions.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, qk_norm: bool = False) -> None:
        super().__init__()
        self.attn = Attention(hidden_size, num_heads, qk_norm)
        self.attn_temp = Attention(hidden_size, num_heads, qk_norm)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), hidden_size)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, hidden_size))
        self.scale_shift_table_temporal = nn.Parameter(torch.zeros(3, hidden_size))

    def forward(
        self,
        x: Tensor,
        text: PaddedText | PackedText,
        modulation: Tensor,
        temporal_modulation: Tensor,
        rotary: RotaryTable,
    ) -> Tensor:
        """Run the block.

        Args:
            x: (B, T, S, D).
            text: text tokens of width D.
            modulation: (B, T or 1, 6, D); shift, scale, gate of the spatial attention, then of the MLP.
            temporal_modulation: (B, T or 1, 3, D); shift, scale, gate of the temporal attention.
            rotary: angles of the T frames.

        Returns:
            (B, T, S, D).
        """
        modulation = (self.scale_shift_table + modulation)[:, :, :, None]
        temporal_modulation = (self.scale_shift_table_temporal + temporal_modulation)[:, :, :, None]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.unbind(2)
        temp_shift, temp_scale, temp_gate = temporal_modulation.unbind(2)
        x = multiply_add(x, gate, self.attn(modulated_norm(x, shift, scale)))
        temporal = self.attn_temp.over_frames(modulated_norm(x, temp_shift, temp_scale), rotary)
        x = multiply_add(x, temp_gate, temporal)
        x = x + self.cross_attn(x.flatten(1, 2), text).view(x.shape)
        return multiply_add(x, mlp_gate, self.mlp(modulated_norm(x, mlp_shift, mlp_scale)))


class STDiT2(nn.Module):
    """The ST-DiT-2 denoiser; state-dict keys are those of the released Open-Sora 1.1 weights.

    A new network holds framework defaults: load weights or call `initialize`.

    Args:
        config: sizes and options.

    Attributes:
        text_layout: how text is laid out for cross-attention: ``"packed"`` (no padding), ``"padded"`` (one masked
            product, the one to compile) or ``"auto"`` (by device, type and size).
    """

    def __init__(self, config: STDiT2Config) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.x_embedder = PatchEmbed3D(config.patch_size, config.in_channels, d)
        self.t_embedder = TimestepEmbedder(d)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
        self.t_block_temp = nn.Sequential(nn.SiLU(), nn.Linear(d, 3 * d))
        self.y_embedder = CaptionEmbedder(config.caption_channels, d, config.model_max_length)
        self.pos_embed = PositionEmbedding2D(d)
        self.rope = RotaryEmbedding(config.head_dim)
        self.blocks = nn.ModuleList(
            STDiT2Block(d, config.num_heads, config.mlp_ratio, config.qk_norm) for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(d, math.prod(config.patch_size), config.out_channels)
        self.csize_embedder = SizeEmbedder(d // 3)
        self.ar_embedder = SizeEmbedder(d // 3)
        self.fl_embedder = SizeEmbedder(d)
        self.fps_embedder = SizeEmbedder(d)
        self.text_layout: Literal["auto", "packed", "padded"] = "auto"
        self._checkpoint_blocks = False
        for name, parameter in self.named_parameters():
            if (config.freeze == "not_temporal" and "attn_temp" not in name) or (
                config.freeze == "text" and "cross_attn" in name
            ):
                parameter.requires_grad_(False)

    def set_activation_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self._checkpoint_blocks = enabled

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        num_frames: Tensor | None = None,
        height: Tensor | None = None,
        width: Tensor | None = None,
        ar: Tensor | None = None,
        fps: Tensor | None = None,
        drop_caption: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise (and variance interpolation) of noisy latents.

        Args:
            x: (B, C, T, H, W) latents.
            timestep: (B,) timesteps of the 1000-step process.
            y: (B, 1, M, caption_channels) text features, M at most `model_max_length`.
            mask: (B or B/k, M), nonzero where a text token counts; None uses all.
            x_mask: (B or B/k, T) bool, True = frame is generated, False = condition frame (timestep 0);
                None = all True.
            num_frames, height, width, ar, fps: (B or B/k,) of the clip in pixels; fewer rows than B are tiled.
                The position table reads the first sample's height and width only.
            drop_caption: (B,) bool, True where the text is replaced by the null text (the mask stays).

        Returns:
            (B, out_channels, T, H, W) float32.

        Raises:
            ValueError: if video information is missing or shapes do not fit the configuration.
        """
        numbers = {"height": height, "width": width, "ar": ar, "num_frames": num_frames, "fps": fps}
        missing = [name for name, value in numbers.items() if value is None]
        if missing or height is None or width is None:
            raise ValueError(f"the network needs {', '.join(missing)} of every clip; pass (B,) tensors")
        self._check_shapes(x, y)
        dtype = self.x_embedder.proj.weight.dtype
        batch = x.shape[0]
        grid = self.x_embedder.grid(x.to(dtype))
        _, frames, rows, columns, _ = grid.shape
        scale = math.sqrt(height[0].item() * width[0].item()) / self.config.input_sq_size
        base_size = round(math.sqrt(rows * columns))
        positions = self.pos_embed(rows, columns, scale, base_size, device=x.device, dtype=dtype)
        tokens = grid.flatten(2, 3) + positions
        meta = {name: tile_batch(value, batch) for name, value in numbers.items() if value is not None}
        if x_mask is not None:
            x_mask = tile_batch(x_mask, batch).bool()
        t, t0_info, modulation, temporal_modulation = self._condition(timestep.to(dtype), meta, x_mask)
        text = self._embed_text(y.to(dtype), mask, drop_caption, queries=tokens.shape[1] * tokens.shape[2])
        rotary = self.rope.table(frames)
        for block in self.blocks:
            if self._checkpoint_blocks and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, text, modulation, temporal_modulation, rotary, use_reentrant=False)
            else:
                tokens = block(tokens, text, modulation, temporal_modulation, rotary)
        patches = self.final_layer(tokens, t, x_mask, t0_info)
        return self._unpatchify(patches, rows, columns)[..., : x.shape[2], : x.shape[3], : x.shape[4]].float()

    def _check_shapes(self, x: Tensor, y: Tensor) -> None:
        channels, width, longest = (
            self.config.in_channels, self.config.caption_channels, self.config.model_max_length
        )  # fmt: skip
        if x.ndim != 5 or x.shape[1] != channels:
            raise ValueError(
                f"latents have shape {tuple(x.shape)}, expected (batch, {channels}, frames, height, width)"
            )
        if y.ndim != 4 or (*y.shape[:2], y.shape[3]) != (x.shape[0], 1, width) or y.shape[2] > longest:
            raise ValueError(
                f"text features have shape {tuple(y.shape)}, expected "
                f"({x.shape[0]}, 1, at most {longest} tokens, {width})"
            )

    def _condition(
        self, timestep: Tensor, meta: dict[str, Tensor], x_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Embed timestep and video information.

        Returns:
            t: (B, D), bare timestep embedding.
            t0_info: (B, D), embedding of timestep 0 plus size information; None without `x_mask`.
            modulation: (B, T or 1, 6, D), chosen per frame by `x_mask`.
            temporal_modulation: (B, T or 1, 3, D), likewise.
        """
        batch = timestep.shape[0]
        steps = timestep if x_mask is None else torch.cat((timestep, timestep.new_zeros(1)))
        order = ("height", "width", "ar", "num_frames", "fps")
        numbers = torch.cat([steps.float()] + [meta[name].float() for name in order])
        features = sinusoidal_embedding(numbers, self.t_embedder.frequency_embedding_size)
        counts = (len(steps), 2 * batch, batch, batch, batch)
        of_steps, of_sizes, of_ar, of_frames, of_fps = features.split(counts)
        size_height, size_width = self.csize_embedder.embed_features(of_sizes).chunk(2)
        info = torch.cat((size_height, size_width, self.ar_embedder.embed_features(of_ar)), dim=-1)
        temporal_info = self.fl_embedder.embed_features(of_frames) + self.fps_embedder.embed_features(of_fps)
        embedded = self.t_embedder.embed_features(of_steps)
        if x_mask is None:
            modulation = self.t_block(embedded + info).view(batch, 1, 6, -1)
            temporal_modulation = self.t_block_temp(embedded + temporal_info).view(batch, 1, 3, -1)
            return embedded, None, modulation, temporal_modulation
        t, t0 = embedded[:batch], embedded[batch:]
        t0_info = t0 + info
        both = self.t_block(torch.cat((t + info, t0_info))).view(2, batch, 1, 6, -1)
        both_temporal = self.t_block_temp(torch.cat((t, t0.expand(batch, -1))) + temporal_info.repeat(2, 1))
        both_temporal = both_temporal.view(2, batch, 1, 3, -1)
        per_frame = x_mask[:, :, None, None]
        return (
            t,
            t0_info,
            torch.where(per_frame, both[0], both[1]),
            torch.where(per_frame, both_temporal[0], both_temporal[1]),
        )

    def _embed_text(
        self, y: Tensor, mask: Tensor | None, drop_caption: Tensor | None, queries: int
    ) -> PaddedText | PackedText:
        """Project the text tokens that count and lay them out for cross-attention.

        Tokens are selected before the projection: it works token by token, and most of `y` is padding.
        """
        batch, _, length, _ = y.shape
        features = self.y_embedder.replace_dropped(y, drop_caption)[:, 0]
        if mask is None:
            return PaddedText(self.y_embedder.y_proj(features))
        keep = tile_batch(mask, batch) != 0
        if keep.shape[1] != length:
            raise ValueError(f"the text mask has {keep.shape[1]} tokens per caption, the features {length}")
        layout = self.text_layout
        if layout == "padded" or (layout == "auto" and not self._packs_text(features)):
            return self._padded_text(features, keep)
        lengths = keep.sum(1).tolist()
        longest, fewest = max(lengths), min(lengths)
        on_cpu = y.device.type == "cpu"
        if layout == "auto" and not fewest and not on_cpu:
            return self._padded_text(features, keep)
        small = on_cpu and batch > 1 and batch * longest * queries <= PADDED_TEXT_MAX_SCORES
        if layout == "auto" and fewest and small:
            last = int(keep.any(0).nonzero().max()) + 1
            return self._padded_text(features[:, :last], None if fewest == last else keep[:, :last])
        return PackedText(self.y_embedder.y_proj(features[keep]), tuple(lengths))

    def _packs_text(self, features: Tensor) -> bool:
        """Whether packed text pays on this device: always on a CPU, elsewhere if a kernel takes it in one call."""
        device_type = features.device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if autocast else features.dtype
        kernel = choose_packed_kernel(device_type, dtype, self.config.head_dim, 1, available_kernels())
        return device_type == "cpu" or kernel != "loop"

    def _padded_text(self, features: Tensor, keep: Tensor | None) -> PaddedText:
        tokens = self.y_embedder.y_proj(features)
        return PaddedText(tokens) if keep is None else PaddedText.masked(tokens, keep)

    def _unpatchify(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """Fold (B, T', S, patch volume * out_channels) into (B, out_channels, T, H, W), still padded."""
        pt, ph, pw = self.config.patch_size
        batch, frames = patches.shape[:2]
        folded = patches.view(batch, frames, rows, columns, pt, ph, pw, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return folded.reshape(batch, -1, frames * pt, rows * ph, columns * pw)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw fresh weights in place (Open-Sora 1.1), the same for the same generator state.

        With ``config.init == "xavier"`` the timestep embedder, its modulation layers and the text projection
        keep the Xavier draw of every other linear layer instead of N(0, 0.02).
        """
        initialize_weights(self, self.config.init, generator)
