"""ColossalAI's Booster as a strategy, with checkpoints of the same form as every other.

ColossalAI 0.5.0 is imported when the strategy is chosen; it is installed from a lock of its own, see the extra
`colossalai`. Its plugins are always asked for "fp32": the trainer's autocast computes in bf16, the weights and
AdamW's moments stay float32, so a checkpoint holds all there is. Under its "bf16" a plugin keeps float32 weights of
its own and makes them anew from rounded ones when it loads: a resume would not be one. Gemini knows no "fp32" and is
not offered, and ZeRO-2 is not because its losses left those of one process by 0.6 % within 20 steps; torch's "fsdp"
shards as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.optimizer_config import OptimizerConfig
from model.parallel.updates import MOMENTS, Updates, adamw

BoosterPlugin = Literal["ddp", "zero1"]


class BoosterModel(nn.Module):
    """A network for Booster, which wraps it together with its optimizer; can be called after that.

    Args:
        network: on this rank's device.
        plugin: replicate everything ("ddp") or shard the optimizer ("zero1").

    Raises:
        ValueError: if ColossalAI is not installed or the plugin does not work on this device.
    """

    def __init__(self, network: nn.Module, plugin: BoosterPlugin) -> None:
        super().__init__()
        self.plugin_name = plugin
        try:
            from colossalai.accelerator import get_accelerator
        except ImportError as error:
            raise ValueError(
                f"parallel is 'colossalai', which cannot be imported here ({error}); install the extra 'colossalai' "
                "from requirements-colossalai.lock, or choose 'ddp' or 'fsdp'"
            ) from error
        if plugin != "ddp" and get_accelerator().name == "cpu":
            raise ValueError(f"ColossalAI's {plugin!r} needs a GPU; choose its plugin 'ddp', or parallel 'fsdp'")
        self._wrapped: tuple[nn.Module, ...] = (network,)  # in a tuple: not registered, so its names stay its own

    def boost(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> tuple[Any, Any]:
        """Let Booster wrap network and optimizer; returns the booster and the wrapped optimizer."""
        from colossalai.booster import Booster
        from colossalai.booster.plugin import LowLevelZeroPlugin, TorchDDPPlugin

        network = self._wrapped[0]
        if self.plugin_name == "ddp":
            # single frames do not use the temporal queries and keys
            plugin = TorchDDPPlugin(broadcast_buffers=False, find_unused_parameters=True)
        else:
            on_gpu = next(network.parameters()).device.type == "cuda"
            plugin = LowLevelZeroPlugin(
                stage=1, precision="fp32", max_norm=max_norm or 0.0,
                overlap_communication=on_gpu,
            )  # fmt: skip
        booster = Booster(plugin=plugin)
        model, wrapped, *_ = booster.boost(network, optimizer)
        self._wrapped = (model,)
        return booster, wrapped

    @property
    def wrapped(self) -> nn.Module:
        """The network as Booster returned it."""
        return self._wrapped[0]

    def train(self, mode: bool = True) -> BoosterModel:
        """Set the mode of the network, which is no registered child."""
        super().train(mode)
        self._wrapped[0].train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the network returns."""
        output: Tensor = self._wrapped[0](*args, **kwargs)
        return output


class BoosterUpdates(Updates):
    """The updates of a network that Booster wrapped."""

    def __init__(self, model: nn.Module, trainable: Mapping[str, nn.Parameter], settings: OptimizerConfig) -> None:
        assert isinstance(model, BoosterModel)
        self._trainable, self._limit = dict(trainable), settings.grad_clip
        self._sharded = model.plugin_name != "ddp"
        self._booster, self._boosted = model.boost(adamw(list(self._trainable.values()), settings), self._limit)
        self._wrapped: Any = model.wrapped

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        """Around one batch: ranks exchange gradients with the last."""
        if last:
            return nullcontext()
        context: AbstractContextManager[object] = self._booster.no_sync(self._wrapped, self._boosted)
        return context

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to that of the step."""
        self._booster.backward(loss, self._boosted)

    def clip(self) -> Tensor:
        """The gradient's global L2 norm; sharded gradients are clipped when they are applied."""
        if not self._sharded:
            return super().clip()
        own = nn.utils.get_total_norm(self._boosted.get_working_grads_by_group_id(0)).double().square()
        dist.all_reduce(own)
        return own.sqrt().float()

    def apply(self, learning_rate: float) -> None:
        """Move the weights along the clipped gradient."""
        self._boosted.param_groups[0]["lr"] = learning_rate
        self._boosted.step()

    def clear(self) -> None:
        """Forget the gradient."""
        self._boosted.zero_grad()

    @torch.no_grad()
    def weights_replaced(self) -> None:
        """Let every rank's shard of the optimizer follow."""
        if self._sharded:
            self._boosted.update_master_params(self._wrapped.unwrap())

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state, whole, as `<parameter>.exp_avg` and so on."""
        state = self._boosted.state_dict()["state"]
        return {
            f"{name}.{moment}": state[index][moment]
            for index, name in enumerate(self._trainable)
            for moment in MOMENTS
            if moment in state.get(index, {})
        }

    @torch.no_grad()
    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Take over whole moments; parameters without any start afresh."""
        state = {
            index: {moment: moments[f"{name}.{moment}"] for moment in MOMENTS}
            for index, name in enumerate(self._trainable)
            if f"{name}.step" in moments
        }
        groups = self._boosted.optim.state_dict()["param_groups"]
        self._boosted.load_state_dict({"state": state, "param_groups": groups})
