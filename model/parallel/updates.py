"""What a step does to a wrapped network's weights: backward passes, clipping, AdamW, its moments by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.optimizer_config import OptimizerConfig
from model.parallel.shares import gathered, load_whole

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def adamw(parameters: list[nn.Parameter], settings: OptimizerConfig) -> torch.optim.AdamW:
    """The optimizer of every strategy."""
    return torch.optim.AdamW(
        parameters, settings.learning_rate, settings.betas, settings.eps, settings.weight_decay, fused=True
    )


class Updates:
    """The updates of a network that torch itself wrapped, or nobody.

    Args:
        model: the network as `parallelize` returned it.
        trainable: the parameters that move, by name.
        settings: of AdamW and of clipping.
    """

    def __init__(self, model: nn.Module, trainable: Mapping[str, nn.Parameter], settings: OptimizerConfig) -> None:
        self._model, self._trainable, self._limit = model, dict(trainable), settings.grad_clip
        self._optimizer = adamw(list(self._trainable.values()), settings)

    def accumulating(self, last: bool) -> AbstractContextManager[object]:
        """Around forward and backward pass of one of a step's batches: ranks exchange gradients with the last."""
        if not last and isinstance(self._model, DistributedDataParallel):
            return self._model.no_sync()
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to that of the step."""
        loss.backward()

    def clip(self) -> Tensor:
        """Bound the gradient's global L2 norm; returns what it was before, the same on every rank."""
        parameters = list(self._trainable.values())
        if self._limit is None:
            return gathered(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        return gathered(nn.utils.clip_grad_norm_(parameters, self._limit))

    def apply(self, learning_rate: float) -> None:
        """Move the weights along the clipped gradient."""
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()

    def clear(self) -> None:
        """Forget the gradient."""
        self._optimizer.zero_grad(set_to_none=True)

    def weights_replaced(self) -> None:
        """Take note that the network's weights were overwritten from outside."""

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state as `<parameter>.exp_avg` and so on; a rank's share of it under "fsdp"."""
        return {
            f"{name}.{moment}": self._optimizer.state[parameter][moment]
            for name, parameter in self._trainable.items()
            for moment in MOMENTS
            if parameter in self._optimizer.state
        }

    @torch.no_grad()
    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Take over whole moments; parameters without any start afresh."""
        for name, parameter in self._trainable.items():
            if f"{name}.step" not in moments:
                self._optimizer.state.pop(parameter, None)
                continue
            own = self._optimizer.state[parameter]
            for moment in MOMENTS:
                value = moments[f"{name}.{moment}"]
                if moment == "step":
                    own[moment] = value.to(parameter.device)
                else:
                    own[moment] = torch.zeros_like(parameter)
                    load_whole(own[moment], value)
