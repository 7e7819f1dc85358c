"""How videos are drawn from a checkpoint. Read through `components.config`."""

from __future__ import annotations

from pydantic import Field

from components.section import Section
from model.diffusion_config import SamplingMethod
from model.geometry import VAE_STRIDE


class SamplingConfig(Section):
    """How videos are drawn from a checkpoint."""

    num_inference_steps: int = Field(100, ge=1)
    method: SamplingMethod = Field("own", description="Own: ancestral, or Euler for a flow; dpm-solver++ in 25 steps.")
    guidance_scale: float = Field(7.0, ge=0)
    cfg_channel: int | None = Field(None, ge=1, description="Guide only the first channels (Open-Sora 1.1 used 3).")
    use_ema: bool = True
    keep_condition_frames: bool = Field(
        True, description="Given frames come back exactly; Open-Sora 1.1 returned its prediction of them."
    )
    fps: float = Field(24.0, gt=0, description="Frame rate told to the network.")
    saved_fps: float = Field(8.0, gt=0, description="Frame rate of the written file.")


def check_size(where: str, height: int, width: int) -> None:
    """Refuse a size in pixels of which the autoencoder would cut something off.

    Raises:
        ValueError: naming `where` it stands.
    """
    _, vertical, horizontal = VAE_STRIDE
    if height % vertical or width % horizontal:
        raise ValueError(
            f"{where}: {height}x{width} does not divide by the autoencoder's stride {vertical}; "
            f"choose multiples of {vertical}"
        )
