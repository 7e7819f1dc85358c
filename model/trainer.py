"""The training loop: noise a batch, predict, step, average, and tell whoever asked.

Every random draw is a pure function of (seed, stage, batch, purpose), so a run goes on bit by bit from any
checkpoint that holds the weights, the optimizer, the moving average and the number of steps done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from model.batch import Batch
from model.checkpoint import Part, Progress, TrainingState
from model.diffusion_config import DiffusionConfig
from model.ema import EMA
from model.handover import Handover
from model.host_memory import HostMemory
from model.mask_config import MaskRatios
from model.metrics import LogPoint
from model.objective import RANDOM_STREAM, Objective, Precision
from model.optimizer_config import OptimizerConfig
from model.parallel import Ranks, load_whole, mean_over_ranks, updates_of
from model.sentinel import LeftOut, Sentinel
from model.sentinel_config import SentinelConfig
from model.stdit2 import STDiT2
from model.window import Window

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerOptions:
    """What one stage of training is told.

    Attributes:
        stage: name; part of every random stream.
        steps: optimizer steps of the stage.
        batches_per_step: global batches whose mean loss one step follows; R ranks take an R-th of them each.
        masks: mixture of frame masks, or None to generate every frame.
        precision: "bf16" computes under autocast; the weights stay float32.
        log_every, save_every: in steps; the last step is always logged and saved.
        sharded_state: each rank's state holds its own share of the optimizer instead of the first rank's all of it.
        sentinel: which steps are not applied, and when the stage goes back.
        handover: what the stage took over from the one before, recorded in its checkpoints.
    """

    stage: str
    steps: int
    seed: int
    optimizer: OptimizerConfig
    diffusion: DiffusionConfig
    batches_per_step: int = 1
    masks: MaskRatios | None = None
    ema_decay: float = 0.9999
    precision: Precision = "fp32"
    log_every: int = 10
    save_every: int = 500
    sharded_state: bool = False
    sentinel: SentinelConfig = field(default_factory=SentinelConfig)
    handover: Handover = field(default_factory=Handover)


class TrainingDivergedError(ValueError):
    """Loss or gradient stayed out of bounds although steps were skipped and left out."""


class Trainer:
    """Trains a network from batches that are a function of their index.

    Args:
        network: the bare network: names, configuration, weights.
        options: what to do.
        model: the network as `model.parallel.parallelize` returned it; the network itself when absent.
        ranks: this process among those that train together.

    Attributes:
        step: optimizer steps done.
        skipped_steps: steps not applied because loss or gradient were not to be trusted.
        left_out: steps that are passed over.

    Raises:
        ValueError: the ranks cannot share a step's batches equally, or nothing is trainable.
    """

    def __init__(
        self, network: STDiT2, options: TrainerOptions, *, model: nn.Module | None = None, ranks: Ranks | None = None
    ) -> None:
        self.network, self.options, self.ranks = network, options, ranks or Ranks()
        self.model = model if model is not None else network
        self._objective = Objective(
            self.model, options.diffusion, options.stage, options.seed, network.config.class_dropout_prob,
            options.masks, options.precision, self.ranks.device,
        )  # fmt: skip
        self._batches_per_rank = batches_per_rank(options.batches_per_step, self.ranks.data_ranks)
        self.ema = EMA(network, options.ema_decay)
        self.step = self.skipped_steps = 0
        self._trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
        if not self._trainable:
            raise ValueError("the network has no trainable parameter; check the option freeze")
        self._updates = updates_of(self.model, self._trainable, options.optimizer)
        self._host = HostMemory()
        self.left_out: tuple[LeftOut, ...] = ()
        self._sentinel = Sentinel(options.sentinel)

    # --- state ---------------------------------------------------------------------------------------------

    def state(self) -> TrainingState:
        """Everything needed to go on later; all ranks must call it together."""
        options = self.options
        moments = self._updates.moments()
        copy, part = self._host.lease(), None
        whole = self.ranks.is_first or not options.sharded_state
        weights = copy.whole("weights", self.network.state_dict(), keep=whole)
        ema = copy.whole("ema", self.ema.shadow, keep=whole)
        if options.sharded_state:
            optimizer, offsets = copy.own("optimizer", moments)
            part = Part(self.ranks.rank, self.ranks.world_size, offsets)
        else:
            optimizer = copy.whole("optimizer", moments)
        return TrainingState(
            config=self.network.config,
            weights=weights,
            ema=weights | ema,
            optimizer=optimizer,
            part=part,
            release=copy.release,
            progress=Progress(
                stage=options.stage,
                step=self.step,
                steps=options.steps,
                batches_per_step=options.batches_per_step,
                skipped_steps=self.skipped_steps,
                sentinel=self._sentinel.state(),
                left_out=self.left_out,
                seed=options.seed,
                random_stream=RANDOM_STREAM,
                optimizer=options.optimizer,
                diffusion=options.diffusion,
                ema_decay=options.ema_decay,
                handover=options.handover,
            ),
        )

    def restore(self, state: TrainingState) -> None:
        """Go on exactly where a checkpoint of this stage was written, by however many ranks.

        Raises:
            ValueError: if the tensors do not belong to this network, or steps were of another number of batches.
        """
        before, asked = state.progress.batches_per_step, self.options.batches_per_step
        if before != asked:
            raise ValueError(f"the checkpoint was made with batches_per_step {before} and cannot go on with {asked}")
        self.start_from(state)
        self.step, self.skipped_steps = state.progress.step, state.progress.skipped_steps
        self._sentinel.restore(state.progress.sentinel)
        self.left_out = state.progress.left_out

    @torch.no_grad()
    def start_from(self, state: TrainingState, *, carry_optimizer: bool = True) -> None:
        """Take over weights, moving average and (if wanted) optimizer moments; steps are counted from zero.

        Raises:
            ValueError: if the tensors do not belong to this network.
        """
        own = self.network.state_dict()
        for name in own.keys() | state.weights.keys():
            if name not in own or name not in state.weights or own[name].shape != state.weights[name].shape:
                raise ValueError(f"the checkpoint's {name} does not fit this network; both need the same sizes")
        for name, tensor in own.items():
            load_whole(tensor, state.weights[name])
        self._updates.weights_replaced()
        for name in self._trainable:
            load_whole(self.ema.shadow[name], state.ema[name])
        if carry_optimizer:
            self._updates.load_moments(state.optimizer)

    # --- the loop ------------------------------------------------------------------------------------------

    def fit(
        self,
        batches: Callable[[int], Batch],
        *,
        log: Callable[[LogPoint], None],
        save: Callable[[TrainingState], None],
        go_back: Callable[[LeftOut], TrainingState] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train from the present step to the last.

        Args:
            batches: global batch index -> batch; see `step_batches` for which of them a rank takes.
            log: called every `log_every` steps and before each save.
            save: called every `save_every` steps, unless the last step was refused, and after the last of all.
            go_back: called when too many steps in a row were refused, or the very last one; returns an earlier state
                of this stage, best one before the steps that are to be left out. Without it that is the end.
            stop: asked after every step; once it says so on any rank, all of them log, save and return.

        Returns:
            Whether the last step was reached.

        Raises:
            TrainingDivergedError: after several steps in a row without a loss and gradient to be trusted, and going
                back as often as is allowed.
        """
        options = self.options
        window = Window(self.step, self.network.config, self.ranks)
        stopping = False
        self.model.train()
        while self.step < options.steps and not stopping:
            learning_rate = options.optimizer.learning_rate_at(self.step, options.steps)
            if not self._is_left_out(self.step):
                fault, stopping = self._train_step(batches, learning_rate, window, stop)
                if fault is not None and (self._sentinel.gives_in or self.step + 1 == options.steps):
                    self._go_back(fault, go_back)
                    window = Window(self.step, self.network.config, self.ranks)
                    continue
            self.step += 1
            # what was refused may be the weights' fault: nobody should go back to such a state
            good = self._sentinel.skipped_in_a_row == 0
            saves = (self.step % options.save_every == 0 and good) or self.step == options.steps or stopping
            if saves or self.step % options.log_every == 0:
                log(window.point(self.step, learning_rate))
                if saves:
                    save(self.state())
                window = Window(self.step, self.network.config, self.ranks)
        return self.step == options.steps

    def coming_batches(self) -> Iterator[int]:
        """Global indices of the batches this rank will read from the present step on, as things stand."""
        for step in range(self.step, self.options.steps):
            if not self._is_left_out(step):
                yield from self.step_batches(step)

    def _is_left_out(self, step: int) -> bool:
        return any(steps.covers(step) for steps in self.left_out)

    def _go_back(self, fault: str, go_back: Callable[[LeftOut], TrainingState] | None) -> None:
        """Take up an earlier state and pass over the steps that led here."""
        settings = self.options.sentinel
        first_refused = self.step + 1 - self._sentinel.skipped_in_a_row
        window = LeftOut(
            first_step=max(first_refused - settings.lookback_steps, 0), end_step=self.step + 1, reason=fault
        )
        if go_back is None or len(self.left_out) >= settings.max_rollbacks:
            before = f" and after going back {len(self.left_out)} times" if self.left_out else ""
            raise TrainingDivergedError(
                f"{fault} at step {self.step + 1}, the last of {self._sentinel.skipped_in_a_row} steps in a row that "
                f"were not applied{before}; lower the learning rate or look at the data of these steps, then start "
                "again from the last checkpoint."
            )
        state, before_this = go_back(window), self.left_out
        self.restore(state)
        self.left_out = (*before_this, window.since(self.step))

    def step_batches(self, step: int) -> list[int]:
        """Global indices of the batches this rank takes in that step, in order."""
        first, ranks = step * self.options.batches_per_step + self.ranks.data_rank, self.ranks.data_ranks
        return [first + turn * ranks for turn in range(self._batches_per_rank)]

    def _train_step(
        self, batches: Callable[[int], Batch], learning_rate: float, window: Window, stop: Callable[[], bool]
    ) -> tuple[str | None, bool]:
        """Forward and backward passes of a step's batches and, if the result can be trusted, one optimizer step.

        Returns:
            why the step was not applied, or None when it was; whether any rank wants to stop after it.
        """
        indices = self.step_batches(self.step)
        losses = []
        for index in indices:
            asked_s = time.perf_counter()
            batch = batches(index)
            window.waited(time.perf_counter() - asked_s)
            mark = window.begin_batch()
            with self._updates.accumulating(index == indices[-1]):
                loss = self._objective(batch, index)
                self._updates.backward(loss.mean / len(indices) if len(indices) > 1 else loss.mean)
            losses.append(loss.mean.detach())
            window.end_batch(mark, batch, loss)
        norm = self._updates.clip()
        own_loss = torch.stack(losses).mean() if len(losses) > 1 else losses[0]
        # one wait for the device, and the same verdict on every rank
        stopping = torch.tensor(float(stop()), device=self.ranks.device)
        loss_value, grad_norm, wants_to_stop = mean_over_ranks(
            torch.stack((own_loss, norm, stopping)), self.ranks
        ).tolist()
        fault = self._sentinel.judge(loss_value, grad_norm)
        if fault is None:
            self._updates.apply(learning_rate)
            self.ema.update()
        else:
            logger.warning("step %d is not applied: %s.", self.step + 1, fault)
            self.skipped_steps += 1
        window.end_step(loss_value, grad_norm, applied=fault is None)
        self._updates.clear()
        return fault, wants_to_stop > 0


def batches_per_rank(batches_per_step: int, world_size: int) -> int:
    """How many of a step's batches each rank takes; `ValueError` when they cannot be shared equally."""
    if batches_per_step % world_size:
        fitting = [str(ranks) for ranks in range(1, batches_per_step + 1) if batches_per_step % ranks == 0]
        raise ValueError(
            f"{world_size} processes cannot share batches_per_step {batches_per_step} equally; "
            f"start {' or '.join(fitting)}, or plan with a multiple of {world_size}"
        )
    return batches_per_step // world_size
