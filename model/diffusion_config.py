"""Which diffusion process trains and samples; read by configs that must not need torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class IDDPMConfig(BaseModel):
    """The process of Open-Sora 1.1: 1000 linear-beta steps, learned variance, ancestral sampling."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["iddpm"] = "iddpm"
    rescale_learned_sigmas: bool = Field(False, description="Scale the variance term by steps/1000 when respaced.")


class FlowConfig(BaseModel):
    """Rectified flow, as later versions of Open-Sora train: straight paths, velocity target, Euler sampling."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["flow"] = "flow"
    timestep_density: Literal["uniform", "discrete", "logit-normal"] = Field(
        "uniform", description="How training timesteps are drawn."
    )
    flow_shift: float | Literal["resolution"] | None = Field(
        None, description="Shift towards noise: a constant, by resolution and length, or none."
    )


SamplingMethod = Literal["own", "dpm-solver++"]
"""How a process is sampled: as it was published, or by a solver that needs a quarter of the steps."""

DiffusionConfig = Annotated[IDDPMConfig | FlowConfig, Field(discriminator="kind")]
