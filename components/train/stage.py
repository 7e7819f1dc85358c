"""One run of one stage on one rank: prepare, train, save, report."""

from __future__ import annotations

import json
import logging
import secrets
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from components import manifest, progress, store, weights
from components.config import TrackingConfig, TrainConfig
from components.errors import KinoflowError
from components.layout import REPORT
from components.manifest import Manifest
from components.takedown import REASON
from components.tracking import Tracker, open_tracker
from components.train.checkpoints import KIND, StageCheckpoints
from components.train.gate import Verdict, check_gate
from components.train.inputs import StageBatches, fill_network, load_kind
from components.train.interruption import Interruption, Preempted, Watchdog
from components.train.keeping import Keeper
from components.train.outages import Patience
from components.train.report import Cause, History, Rollback, TrainReport, read_report, write_report
from components.train.takedowns import StageTakedowns
from model.batch import Batch
from model.checkpoint import TrainingState, load_checkpoint
from model.handover import Handover
from model.metrics import LogPoint, matmul_peak
from model.objective import stream_seed
from model.parallel import Ranks, agreed, parallelize
from model.sentinel import LeftOut
from model.stdit2 import STDiT2
from model.trainer import Trainer, TrainerOptions

logger = logging.getLogger(__name__)

DATASET_KIND = "dataset"


class Stage:
    """One run of one stage on one rank.

    Args:
        config: the stage.
        ranks: this process among those that train together.
        interruption: whether to stop.
        data, parent, out: URIs, see `components.train.train`.
    """

    def __init__(
        self, config: TrainConfig, ranks: Ranks, interruption: Interruption, *, data: str, parent: str | None, out: str
    ) -> None:
        self.config, self.ranks, self.interruption = config, ranks, interruption
        self.data, self.parent, self.out = data, parent, out
        self.dataset = load_kind(data, DATASET_KIND)
        inputs = {"data": self.dataset.digest, "clips": self.dataset.dataset_digest}
        self.parent_manifest = load_kind(parent, KIND, weights.KIND) if parent else None
        self.parent_digest = self.parent_manifest.digest if self.parent_manifest else None
        if self.parent_digest:
            inputs["parent"] = self.parent_digest
        self.takedowns = StageTakedowns(config, data, self.dataset, ranks)
        self.checkpoints = StageCheckpoints.of(config, out, inputs)
        self._tell_checkpoints()
        self.network_config = fill_network(config.network, self.dataset, data)
        self.tracker = Tracker()
        self.history = History(identity=self.checkpoints.identity)
        self.watchdog = Watchdog(config.hang_timeout_s, lambda: self._note_end("hung"))
        self.patience = Patience(config.store_outage_s, self.watchdog.beat)
        self.started_s = self.seconds_before = 0.0
        self.published: Manifest | None = None

    def _tell_checkpoints(self) -> None:
        """What the stage leaves out of its data is part of what its checkpoints are."""
        inputs = {name: digest for name, digest in self.checkpoints.inputs.items() if name != REASON}
        self.checkpoints = replace(
            self.checkpoints, inputs={**inputs, **self.takedowns.inputs}, accepts=self.takedowns.accepts
        )

    def run(self, tracking: TrackingConfig) -> TrainReport:
        """Train unless that is done already."""
        manifest.require_dataset(self.data, self.dataset, tracking.dataset_digest)
        if self._parent_checkpoint and self.ranks.is_first:
            self.takedowns.check_parent(self._parent_checkpoint)
        final = self.checkpoints.complete(self.config.steps)
        report = read_report(self.out)
        if final is not None and report is not None and report.checkpoint_digest == final.digest:
            logger.info("stage %r has ended already: %s", self.config.name, report.checkpoint)
            known = Verdict(report.held_out_loss, report.parent_held_out_loss)
            check_gate(self.config, report.checkpoint, known, data=self.data, parent=self._parent_checkpoint)
            return report
        if self.config.num_threads:
            torch.set_num_threads(self.config.num_threads)
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as folder:
            scratch = Path(folder)
            trainer = self._prepare(scratch)
            try:
                return self._run(trainer, tracking, scratch)
            except BaseException as error:
                self._note_end("preempted" if isinstance(error, Preempted | KeyboardInterrupt) else "fault")
                raise

    def _run(self, trainer: Trainer, tracking: TrackingConfig, scratch: Path) -> TrainReport:
        if not self.ranks.is_first:
            self._fit(trainer, scratch)
            return self._report(trainer, Verdict())
        store.delete(store.join(self.out, REPORT))
        self.history.begin(time.time())
        self.history.write(self.out)
        params = {**self.config.model_dump(mode="json"), "data": self.data, "parent": self.parent or ""}
        with open_tracker(tracking, task=f"train {self.config.name}", params=params) as self.tracker:
            self.tracker.log_dataset("clips", self.dataset.dataset_digest, self.data, "training")
            self._fit(trainer, scratch)
            verdict = check_gate(
                self.config, self.checkpoints.uri(trainer.step), data=self.data, parent=self._parent_checkpoint
            )
            report = self._report(trainer, verdict)
            self.tracker.log_metrics({**self.history.reliability(time.time()), **verdict.metrics()}, trainer.step)
            self.patience.insist(lambda: write_report(self.out, report))
        return report

    # --- before ------------------------------------------------------------------------------------------------

    def _prepare(self, scratch: Path) -> Trainer:
        """The trainer, with fresh weights, those of the parent, or those of the newest good checkpoint."""
        state = self._found(self.checkpoints.newest_good(scratch / "own") if self.ranks.is_first else None, scratch)
        network = STDiT2(self.network_config)
        if state is None:
            self._initialize(network, scratch)
        model = parallelize(
            network, self.ranks, self.config.parallel,
            activation_checkpointing=self.config.activation_checkpointing, compile_blocks=self.config.compile,
            booster_plugin=self.config.colossalai_plugin,
        )  # fmt: skip
        trainer = Trainer(network, self._options(), model=model, ranks=self.ranks)
        if state is not None:
            trainer.restore(state)
            self.takedowns.take_up(manifest.load(self.checkpoints.uri(trainer.step)))
            self._tell_checkpoints()
            logger.info("going on from %s", self.checkpoints.uri(trainer.step))
        elif self.parent is not None and not self._starts_from_weights:
            if self.ranks.is_first:
                manifest.pin(self.parent, self.out)
            try:
                trainer.start_from(self._parent_state(scratch), carry_optimizer=self.config.carry_optimizer)
            except ValueError as error:
                raise KinoflowError(f"Stage {self.config.name!r} cannot start from {self.parent}: {error}") from error
        self.history = History.read(self.out, self.checkpoints.identity, trainer.step)
        self.seconds_before = self.history.seconds
        return trainer

    def _found(self, found: tuple[int, TrainingState] | None, scratch: Path) -> TrainingState | None:
        """The checkpoint that the first rank has found, on every rank."""
        step = agreed(found[0] if found else -1, self.ranks)
        if step < 0 or self.ranks.is_first:
            return found[1] if found else None
        folder = scratch / f"other-{step}"
        manifest.fetch(self.checkpoints.uri(step), folder, kind=KIND)
        return load_checkpoint(folder)

    @property
    def _starts_from_weights(self) -> bool:
        """Whether the parent is bare weights rather than a checkpoint."""
        return self.parent_manifest is not None and self.parent_manifest.kind == weights.KIND

    @property
    def _parent_checkpoint(self) -> str | None:
        """The parent, if it can be measured by what a stage leaves."""
        return None if self._starts_from_weights else self.parent

    def _initialize(self, network: STDiT2, scratch: Path) -> None:
        """Give a network the weights that no checkpoint brings."""
        if self.parent is None:
            network.initialize(torch.Generator().manual_seed(stream_seed(self.config.seed, "", 0, "weights")))
        elif self._starts_from_weights:
            weights.load_into(network, self.parent, scratch / "parent")

    def _parent_state(self, scratch: Path) -> TrainingState:
        assert self.parent is not None
        manifest.fetch(self.parent, scratch / "parent", kind=KIND)
        return load_checkpoint(scratch / "parent")

    def _first_state(self, options: TrainerOptions, scratch: Path) -> TrainingState:
        """Where the stage began, as if it had been saved there."""
        network = STDiT2(self.network_config)
        self._initialize(network, scratch)
        trainer = Trainer(network, options, ranks=Ranks())
        if self.parent is not None and not self._starts_from_weights:
            trainer.start_from(self._parent_state(scratch), carry_optimizer=self.config.carry_optimizer)
        return trainer.state()

    def _options(self) -> TrainerOptions:
        config = self.config
        return TrainerOptions(
            stage=config.name,
            steps=config.steps,
            batches_per_step=config.batches_per_step,
            seed=config.seed,
            optimizer=config.optimizer,
            diffusion=config.diffusion,
            masks=config.masks,
            ema_decay=config.ema_decay,
            precision=config.precision,
            log_every=config.log_every,
            save_every=config.checkpoint_every,
            sentinel=config.sentinel,
            handover=self._handover(),
            sharded_state=config.parallel == "fsdp",
        )

    def _handover(self) -> Handover:
        if self.parent is None:
            return Handover(dataset=self.dataset.digest)
        if self._starts_from_weights:
            return Handover(weights="parent", parent=self.parent_digest, dataset=self.dataset.digest)
        return Handover(
            weights="parent",
            ema="parent",
            optimizer="carried" if self.config.carry_optimizer else "reset",
            parent=self.parent_digest,
            dataset=self.dataset.digest,
        )

    # --- during ------------------------------------------------------------------------------------------------

    def _fit(self, trainer: Trainer, scratch: Path) -> None:
        self.started_s = time.monotonic()
        if trainer.step == self.config.steps:
            self.published = self.checkpoints.complete(trainer.step)
            agreed(trainer.step, self.ranks)
            return
        batches = StageBatches(self.config, self.data, self.dataset, scratch / "data", self.takedowns.taken)
        with (
            self._keeper() as keeper,
            batches.reader as reader,
            progress.task(f"train {self.config.name}", self.config.steps) as task,
            self.interruption.deferred(),
            self.watchdog,
        ):
            task.update(trainer.step)
            reader.schedule(trainer.coming_batches())
            peak = self._peak_flops_per_s()

            def log(point: LogPoint) -> None:
                self.history.add(point)
                self.tracker.log_metrics(point.rates(peak, self.ranks.world_size), point.step)
                task.update(point.step, f"loss {point.loss:.4f}")

            order_changed = False

            def read(index: int) -> Batch:
                nonlocal order_changed
                if order_changed:
                    reader.schedule(trainer.coming_batches())
                    order_changed = False
                self.watchdog.beat()
                return reader.read(index)

            def save(state: TrainingState) -> None:
                self.watchdog.beat()
                ends = state.progress.step == self.config.steps or self.interruption.requested
                keeper.save(state, at_once=ends)
                self.watchdog.beat()

            def go_back(left_out: LeftOut) -> TrainingState:
                nonlocal order_changed
                order_changed = True
                keeper.settle()
                return self._go_back(trainer, batches, left_out, scratch)

            self.history.steps_again(time.time())
            trainer.fit(read, log=log, save=save, go_back=go_back, stop=lambda: self.interruption.requested)
            keeper.settle()
            self.published = keeper.published
            # nobody leaves, told to or not, before the first rank has published the end
            agreed(trainer.step, self.ranks)
        if trainer.step < self.config.steps:  # another rank was told to stop
            raise self.interruption.preempted()

    def _keeper(self) -> Keeper:
        return Keeper(
            self.config, self.checkpoints, self.ranks, self.history, self.tracker, self.patience,
            origin={"data": self.data, "parent": self.parent or ""}, left_out=self.takedowns.history,
            attempt=agreed(secrets.randbits(62), self.ranks),
            clock=self._seconds,
        )  # fmt: skip

    def _seconds(self) -> float:
        """Over all attempts."""
        return self.seconds_before + time.monotonic() - self.started_s

    def _peak_flops_per_s(self) -> float:
        """Of one rank's device in the precision of the stage."""
        dtype = torch.float32 if self.config.precision == "fp32" else torch.bfloat16
        peak = self.config.peak_flops_per_s or matmul_peak(self.ranks.device, dtype)
        self.tracker.set_tags({"kinoflow.peak_tflops_per_s": f"{peak / 1e12:.3g}"})
        return peak

    def _go_back(self, trainer: Trainer, batches: StageBatches, left_out: LeftOut, scratch: Path) -> TrainingState:
        """An earlier state of this stage; what is left out and why is written down first.

        Checkpoints after it are set aside before anything else, so that a process killed here goes on before the fault.
        """
        folder = scratch / f"back-{len(trainer.left_out)}"
        found = self.checkpoints.before(left_out.first_step, folder) if self.ranks.is_first else None
        state = self._found(found, folder) or self._first_state(trainer.options, folder)
        if self.ranks.is_first:
            self._note_rollback(left_out.since(state.progress.step), trainer.step + 1, state.progress.step, batches)
        self.history.cut(state.progress.step)
        return state

    def _note_rollback(self, left_out: LeftOut, from_step: int, to_step: int, batches: StageBatches) -> None:
        size = self.config.batches_per_step
        clip_ids = batches.clip_ids(left_out.first_step * size, left_out.end_step * size)
        name = f"left-out-{left_out.first_step:08d}-{left_out.end_step:08d}.json"
        uri = store.join(self.out, name)
        text = json.dumps({**left_out.model_dump(), "stage": self.config.name, "clip_ids": clip_ids}, indent=1)
        logger.warning(
            "Stage %r goes back from step %d to step %d and leaves out steps %d to %d (%s); their clips are in %s.",
            self.config.name, from_step, to_step, left_out.first_step + 1, left_out.end_step, left_out.reason, uri,
        )  # fmt: skip
        self.history.rollbacks.append(
            Rollback(left_out=left_out, from_step=from_step, to_step=to_step, num_clips=len(clip_ids), clip_ids=uri)
        )
        self.patience.insist(lambda: store.write_bytes(uri, text.encode()))
        self.patience.insist(lambda: self.history.write(self.out))
        self.tracker.set_tags({"kinoflow.left_out": ", ".join(r.clip_ids for r in self.history.rollbacks)})
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as folder:
            copy = Path(folder) / name
            copy.write_text(text, encoding="utf-8")
            self.tracker.log_artifact(copy, "left-out")

    # --- after -------------------------------------------------------------------------------------------------

    def _note_end(self, cause: Cause) -> None:
        """Write down why this attempt ends, if the store lets us; without it the next one takes it for killed."""
        if self.ranks.is_first and self.history.started_at is not None and self.history.ended is None:
            self.history.end(cause, time.time())
            with suppress(Exception):
                self.history.write(self.out)

    def _report(self, trainer: Trainer, verdict: Verdict) -> TrainReport:
        first, last = self.history.loss_ends()
        uri = self.checkpoints.uri(trainer.step)
        published = self.published or manifest.load(uri)
        return TrainReport(
            name=self.config.name,
            steps=trainer.step,
            batches_per_step=self.config.batches_per_step,
            skipped_steps=trainer.skipped_steps,
            loss_first=first,
            loss_last=last,
            seconds=self._seconds(),
            samples_per_s=self.history.samples_per_s(),
            effective_time_ratio=self.history.effective_time_ratio(time.time()),
            restarts=self.history.restarts,
            rollbacks=tuple(self.history.rollbacks),
            handover=trainer.options.handover,
            held_out_loss=verdict.held_out_loss,
            parent_held_out_loss=verdict.parent_held_out_loss,
            checkpoint=uri,
            checkpoint_digest=published.digest,
            parent_checkpoint=self.parent,
            mlflow_run_id=self.tracker.run_id() or self.history.mlflow_run_id,
            model_sha256=published.files["model.safetensors"].sha256,
            history=tuple(self.history.points),
        )
