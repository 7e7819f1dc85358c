"""Train: one stage, from a bucket output and a parent checkpoint to the next checkpoint.

Killed at any moment and started again, it goes on from the newest good checkpoint and ends with the same bytes.
"""

from __future__ import annotations

import logging
import secrets
import tempfile
import time
from pathlib import Path

import torch
from pydantic import JsonValue

from components import manifest, progress, store, weights
from components.batches import BatchReader
from components.config import TrackingConfig, TrainConfig
from components.errors import KinoflowError
from components.manifest import Manifest
from components.plan_file import PlanFile, training_plan
from components.shared_tensors import open_index
from components.tracking import Tracker, open_tracker
from components.train.checkpoints import KIND, StageCheckpoints
from components.train.report import HISTORY, REPORT, History, TrainReport, read_report, write_report
from components.train.saving import AsyncCheckpoints
from model.checkpoint import TrainingState, load_checkpoint
from model.config import STDiT2Config
from model.metrics import LogPoint
from model.parallel import Ranks, agreed, deterministic_algorithms, joined_ranks, parallelize
from model.stdit2 import STDiT2
from model.trainer import Trainer, TrainerOptions, stream_seed

logger = logging.getLogger(__name__)

DATASET_KIND = "dataset"
NETWORK_FACTS = {"latent_channels": "in_channels"} | {n: n for n in ("caption_channels", "model_max_length")}


def train(config: TrainConfig, tracking: TrackingConfig, *, data: str, parent: str | None, out: str) -> TrainReport:
    """Run one stage to its end, or go on with one that was interrupted; one that has ended is left alone.

    Args:
        config: the stage.
        tracking: where the run appears in MLflow.
        data: URI prefix of the bucket output.
        parent: URI of the checkpoint to start from; the config's `start_from`, or fresh weights, when absent.
        out: URI prefix of the stage: checkpoints, history.json and, at the end, report.json.

    Raises:
        KinoflowError: data, plan, parent and configuration do not fit together, or the loss stays without a finite
            value.
    """
    try:
        with deterministic_algorithms(), joined_ranks(config.parallel) as ranks:
            return _Stage(config, ranks, data=data, parent=parent or config.start_from, out=out).run(tracking)
    except ValueError as error:  # what model/ calls a mistake
        raise KinoflowError(f"Stage {config.name!r}: {error}") from error


class _Stage:
    """One run of one stage on one rank."""

    def __init__(self, config: TrainConfig, ranks: Ranks, *, data: str, parent: str | None, out: str) -> None:
        self.config, self.ranks = config, ranks
        self.data, self.parent, self.out = data, parent, out
        self.dataset = _load_kind(data, DATASET_KIND)
        inputs = {"data": self.dataset.digest}
        self.parent_manifest = _load_kind(parent, KIND, weights.KIND) if parent else None
        self.parent_digest = self.parent_manifest.digest if self.parent_manifest else None
        if self.parent_digest:
            inputs["parent"] = self.parent_digest
        self.checkpoints = StageCheckpoints.of(config, out, inputs)
        self.network_config = _fill_network(config.network, self.dataset, data)
        self.tracker = Tracker()
        self.history = History(identity=self.checkpoints.identity)
        self.started_s = self.seconds_before = 0.0
        self.published: Manifest | None = None

    def run(self, tracking: TrackingConfig) -> TrainReport:
        """Train unless that is done already."""
        final = self.checkpoints.complete(self.config.steps)
        report = read_report(self.out)
        if final is not None and report is not None and report.checkpoint_digest == final.digest:
            logger.info("stage %r has ended already: %s", self.config.name, report.checkpoint)
            return report
        if self.config.num_threads:
            torch.set_num_threads(self.config.num_threads)
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as folder:
            scratch = Path(folder)
            trainer = self._prepare(scratch)
            if not self.ranks.is_first:
                self._fit(trainer, scratch)
                agreed(trainer.step, self.ranks)  # the first rank comes here when it has published the end
                return self._report(trainer)
            store.delete(store.join(self.out, REPORT))
            params = {**self.config.model_dump(mode="json"), "data": self.data, "parent": self.parent or ""}
            with open_tracker(tracking, task=f"train {self.config.name}", params=params) as self.tracker:
                digest = tracking.dataset_digest or self.dataset.digest
                self.tracker.log_dataset("clips", digest, self.data, "training")
                self._fit(trainer, scratch)
                agreed(trainer.step, self.ranks)
                report = self._report(trainer)
                write_report(self.out, report)
        return report

    # --- before ------------------------------------------------------------------------------------------------

    def _prepare(self, scratch: Path) -> Trainer:
        """The trainer, with fresh weights, those of the parent, or those of the newest good checkpoint."""
        state = self._found(scratch / "own")
        network = STDiT2(self.network_config)
        if state is None and self.parent is None:
            network.initialize(torch.Generator().manual_seed(stream_seed(self.config.seed, "", 0, "weights")))
        if state is None and self._starts_from_weights:
            weights.load_into(network, self.parent or "", scratch / "parent")
        model = parallelize(
            network, self.ranks, self.config.parallel,
            activation_checkpointing=self.config.activation_checkpointing, compile_blocks=self.config.compile,
        )  # fmt: skip
        trainer = Trainer(network, self._options(), model=model, ranks=self.ranks)
        if state is not None:
            if state.progress.batches_per_step != self.ranks.world_size:
                raise KinoflowError(
                    f"{self.out} was begun by {state.progress.batches_per_step} processes and cannot go on with "
                    f"{self.ranks.world_size}; start as many as before."
                )
            trainer.restore(state)
            logger.info("going on from %s", self.checkpoints.uri(trainer.step))
        elif self.parent is not None and not self._starts_from_weights:
            if self.ranks.is_first:
                manifest.pin(self.parent, self.out)
            manifest.fetch(self.parent, scratch / "parent", kind=KIND)
            try:
                before = load_checkpoint(scratch / "parent")
                trainer.start_from(before, carry_optimizer=self.config.carry_optimizer)
            except ValueError as error:
                raise KinoflowError(f"Stage {self.config.name!r} cannot start from {self.parent}: {error}") from error
        self.history = History.read(self.out, self.checkpoints.identity, trainer.step)
        self.seconds_before = self.history.seconds
        return trainer

    @property
    def _starts_from_weights(self) -> bool:
        return self.parent_manifest is not None and self.parent_manifest.kind == weights.KIND

    def _found(self, scratch: Path) -> TrainingState | None:
        """The newest good checkpoint; the first rank chooses it for all."""
        found = self.checkpoints.newest_good(scratch) if self.ranks.is_first else None
        step = agreed(found[0] if found else -1, self.ranks)
        if step < 0 or self.ranks.is_first:
            return found[1] if found else None
        manifest.fetch(self.checkpoints.uri(step), scratch, kind=KIND)
        return load_checkpoint(scratch)

    def _options(self) -> TrainerOptions:
        config = self.config
        return TrainerOptions(
            stage=config.name,
            steps=config.steps,
            seed=config.seed,
            optimizer=config.optimizer,
            diffusion=config.diffusion,
            masks=config.masks,
            ema_decay=config.ema_decay,
            precision=config.precision,
            log_every=config.log_every,
            save_every=config.checkpoint_every,
            parent=self.parent_digest,
            sharded_state=config.parallel == "fsdp",
        )

    def _open_batches(self, folder: Path) -> BatchReader:
        """Copy the stage's plan and where its tensors lie, and check that they are what this stage needs."""
        name = training_plan(self.config.name)
        if name not in self.dataset.files:
            raise KinoflowError(f"{self.data} holds no plan for the stage {self.config.name!r}; bucket it first.")
        manifest.fetch(self.data, folder, [name])
        plan = PlanFile.open(folder / name)
        wanted = self.config.steps * self.ranks.world_size
        if len(plan) < wanted:
            raise KinoflowError(
                f"The plan of {self.data} for the stage {self.config.name!r} holds {len(plan)} batches, training needs "
                f"{wanted} ({self.config.steps} steps of {self.ranks.world_size} processes); bucket again for that."
            )
        if self.config.masks is not None:
            for num_frames in plan.num_frames:
                self.config.masks.check_num_frames(num_frames)
        return BatchReader(open_index(self.data, folder), plan, ahead_bytes=self.config.read_ahead_bytes)

    # --- during ------------------------------------------------------------------------------------------------

    def _fit(self, trainer: Trainer, scratch: Path) -> None:
        self.started_s = time.monotonic()
        if trainer.step == self.config.steps:
            self.published = self.checkpoints.complete(trainer.step)
            return
        attempt = agreed(secrets.randbits(62), self.ranks)
        with (
            AsyncCheckpoints(self.checkpoints, keep=self.config.keep_checkpoints, attempt=attempt) as saver,
            self._open_batches(scratch / "data") as batches,
            progress.task(f"train {self.config.name}", self.config.steps) as task,
        ):
            task.update(trainer.step)
            ranks, steps = self.ranks, range(trainer.step, self.config.steps)
            batches.schedule(step * ranks.world_size + ranks.rank for step in steps)
            waited_s = 0.0

            def log(point: LogPoint) -> None:
                nonlocal waited_s
                share = (batches.wait_s - waited_s) / max(point.seconds, 1e-9)
                waited_s = batches.wait_s
                self.history.add(point)
                self.tracker.log_metrics({**point.rates(), "data_wait_share": share}, point.step)
                task.update(point.step, f"loss {point.loss:.4f}")

            trainer.fit(batches.read, log=log, save=lambda state: self._save(state, saver))
            self.published = saver.wait()

    def _save(self, state: TrainingState, saver: AsyncCheckpoints) -> None:
        """Begin to publish a checkpoint and everything that must be known to go on after it."""
        if not self.ranks.is_first:
            if state.part is None:
                state.release()
            else:
                saver.save(state, {}, {})
            return
        self.history.seconds = self.seconds_before + time.monotonic() - self.started_s
        self.history.mlflow_run_id = self.tracker.run_id(timeout_s=10) or self.history.mlflow_run_id
        facts: dict[str, JsonValue] = {
            "stage": self.config.name,
            "step": state.progress.step,
            "parameters": sum(tensor.numel() for tensor in state.weights.values()),
        }
        annotations = {"data": self.data, "parent": self.parent or "", "mlflow_run_id": self.history.mlflow_run_id}
        uri = self.checkpoints.uri(state.progress.step)

        def tell(published: Manifest) -> None:
            self.tracker.set_tags({"kinoflow.checkpoint": uri, "kinoflow.checkpoint_digest": published.digest})

        beside = {HISTORY: self.history.model_dump_json().encode()}
        saver.save(state, facts, annotations, beside=beside, then=tell)

    # --- after -------------------------------------------------------------------------------------------------

    def _report(self, trainer: Trainer) -> TrainReport:
        first, last = self.history.loss_ends()
        uri = self.checkpoints.uri(trainer.step)
        published = self.published or manifest.load(uri)
        return TrainReport(
            name=self.config.name,
            steps=trainer.step,
            skipped_steps=trainer.skipped_steps,
            loss_first=first,
            loss_last=last,
            seconds=self.seconds_before + time.monotonic() - self.started_s,
            samples_per_s=self.history.samples_per_s(),
            checkpoint=uri,
            checkpoint_digest=published.digest,
            parent_checkpoint=self.parent,
            mlflow_run_id=self.tracker.run_id() or self.history.mlflow_run_id,
            model_sha256=published.files["model.safetensors"].sha256,
            history=tuple(self.history.points),
        )


def _load_kind(uri: str, *kinds: str) -> Manifest:
    found = manifest.load(uri)
    if found.kind not in kinds:
        raise KinoflowError(f"{uri} holds {found.kind!r}, not {kinds[0]!r}; give the URI of a {kinds[0]} prefix.")
    return found


def _fill_network(network: STDiT2Config, dataset: Manifest, data: str) -> STDiT2Config:
    """The network with the widths that the encoders of the data decide."""
    missing = [name for name in NETWORK_FACTS if not isinstance(dataset.facts.get(name), int)]
    if missing:
        raise KinoflowError(f"The manifest of {data} lacks {', '.join(missing)}; make the bucket output again.")
    facts = {option: dataset.facts[fact] for fact, option in NETWORK_FACTS.items()}
    return STDiT2Config.model_validate({**network.model_dump(), **facts})
