"""Sizes and options of the ST-DiT-2 network; importing this needs no torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MODEL_TYPE = "STDiT2"

Positive = Annotated[int, Field(gt=0)]


class STDiT2Config(BaseModel):
    """Options of the Open-Sora 1.1 denoiser; defaults are those of its bare config class.

    Field names and defaults follow a released ``config.json``; `init` is this project's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_size: tuple[int | None, int | None, int | None] = Field(
        (None, None, None), description="Latent (frames, height, width) in released files; ignored."
    )
    in_channels: Positive = Field(4, description="Latent channels of the autoencoder.")
    patch_size: tuple[Positive, Positive, Positive] = Field(
        (1, 2, 2), description="Latent places per token: (time, height, width)."
    )
    hidden_size: Positive = Field(1152, description="Width D of every token.")
    depth: Positive = Field(28, description="Number of blocks.")
    num_heads: Positive = Field(16, description="Attention heads; D / num_heads channels each.")
    mlp_ratio: float = Field(4.0, gt=0, description="Hidden width of the MLP over D.")
    class_dropout_prob: float = Field(0.1, ge=0, le=1, description="Share of captions dropped in training.")
    pred_sigma: bool = Field(True, description="Predict the variance interpolation beside the noise.")
    drop_path: float = Field(0.0, ge=0, le=0, description="Stochastic depth; only 0 is supported.")
    no_temporal_pos_emb: bool = Field(False, description="Stored by released files, never used.")
    caption_channels: Positive = Field(4096, description="Width of the text encoder's features.")
    model_max_length: Positive = Field(120, description="Most text tokens per caption.")
    qk_norm: bool = Field(False, description="RMS-normalise q and k of both self-attentions.")
    input_sq_size: Positive = Field(32, description="Side in pixels at which the position scale is 1.")
    freeze: Literal["not_temporal", "text"] | None = Field(
        None, description="Train only the temporal attention, or all but the cross-attention."
    )
    enable_flash_attn: bool = Field(False, description="Accepted from released files; kernels are chosen by shape.")
    enable_layernorm_kernel: bool = Field(False, description="Accepted from released files; ignored.")
    init: Literal["opensora", "xavier"] = Field(
        "opensora",
        description="Fresh weights: as Open-Sora 1.1, or without its N(0, 0.02) conditioning layers, "
        "which small networks learn faster from.",
    )

    @model_validator(mode="after")
    def _check_divisible(self) -> Self:
        d = self.hidden_size
        for divisor, why in ((3, "size embeddings"), (4, "position table"), (self.num_heads, "attention heads")):
            if d % divisor:
                raise ValueError(f"hidden_size {d} is not divisible by {divisor} ({why}); change it")
        if self.head_dim % 2:
            raise ValueError(
                f"hidden_size / num_heads = {self.head_dim} is odd; rotary embedding needs pairs, make it even"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.hidden_size // self.num_heads

    @property
    def out_channels(self) -> int:
        """Channels of the output: noise, then (with `pred_sigma`) the variance interpolation."""
        return self.in_channels * (2 if self.pred_sigma else 1)

    @classmethod
    def from_hub_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a released ``config.json``; keys that are no field of this class are ignored.

        Raises:
            ValueError: if the file names another network than ST-DiT-2, or a field is invalid.
        """
        model_type = values.get("model_type", MODEL_TYPE)
        if model_type != MODEL_TYPE:
            raise ValueError(f"config.json: model_type is {model_type!r}, expected {MODEL_TYPE!r}")
        return cls.model_validate({name: value for name, value in values.items() if name in cls.model_fields})

    def to_hub_dict(self) -> dict[str, Any]:
        """The JSON-ready content of ``config.json``: every field plus the keys a hub file carries."""
        return {"model_type": MODEL_TYPE, "architectures": [MODEL_TYPE], **self.model_dump(mode="json")}
