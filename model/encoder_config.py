"""Settings of the two frozen encoders that can be made from the data itself (no torch in here)."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AutoencoderConfig(BaseModel):
    """How the small per-frame autoencoder is shaped and fitted.

    The stride is always 8 in height and width and 1 in time, like the autoencoder of Open-Sora 1.1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent_channels: int = Field(default=8, ge=1, le=192, description="Channels of a latent; at most 3 x 8 x 8.")
    hidden_channels: int = Field(
        default=128, ge=8, description="Width of the convolutions that refine the linear part."
    )
    depth: int = Field(default=2, ge=0, description="Residual convolution blocks in the encoder and in the decoder.")
    steps: int = Field(default=800, ge=0, description="Optimiser steps of the fit; 0 keeps the principal components.")
    batch_size: int = Field(default=16, gt=0, description="Frame crops in one step.")
    crop_px: int = Field(default=48, ge=16, description="Side of the square crops the fit looks at.")
    learning_rate: float = Field(default=2e-3, gt=0, description="Peak learning rate; it falls to zero as a cosine.")
    latent_noise: float = Field(
        default=0.05, ge=0, description="Standard deviation of the noise the decoder learns to bear, per unit latent."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the crops, the noise and the initial weights.")

    @model_validator(mode="after")
    def _crop_is_whole_latents(self) -> Self:
        if self.crop_px % 8:
            raise ValueError(
                f"crop_px={self.crop_px} is not a multiple of the autoencoder's stride 8; choose 48 or 64."
            )
        return self


class TextEncoderConfig(BaseModel):
    """Shape of the small T5 encoder whose vocabulary is the words of the captions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int = Field(default=64, ge=8, description="Width of the text features (caption_channels).")
    depth: int = Field(default=1, ge=1, description="T5 encoder layers.")
    num_heads: int = Field(default=4, ge=1, description="Attention heads.")
    model_max_length: int = Field(
        default=32, ge=2, description="Tokens a caption is padded or cut to, its end included."
    )
    max_vocabulary: int = Field(default=30_000, ge=4, description="Most frequent words kept; others become <unk>.")
    seed: int = Field(default=0, ge=0, description="Seed of the encoder's weights.")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size={self.hidden_size} must be divisible by num_heads={self.num_heads}.")
        return self
