"""What a stage reads of a bucket output: facts about the encoders, the plan, the tensors it names."""

from __future__ import annotations

from pathlib import Path

from components import manifest
from components.batches import BatchReader
from components.config import TrainConfig
from components.errors import KinoflowError
from components.manifest import Manifest
from components.plan_file import PlanFile, training_plan
from components.shared_tensors import open_index
from components.takedown import TakenDown
from components.takedown.plans import without
from model.config import STDiT2Config

NETWORK_FACTS = {"latent_channels": "in_channels"} | {n: n for n in ("caption_channels", "model_max_length")}


def load_kind(uri: str, *kinds: str) -> Manifest:
    """The manifest of a prefix; `KinoflowError` if it is of another kind than these."""
    found = manifest.load(uri)
    if found.kind not in kinds:
        raise KinoflowError(f"{uri} holds {found.kind!r}, not {kinds[0]!r}; give the URI of a {kinds[0]} prefix.")
    return found


def fill_network(network: STDiT2Config, dataset: Manifest, data: str) -> STDiT2Config:
    """The network with the widths that the encoders of the data decide."""
    missing = [name for name in NETWORK_FACTS if not isinstance(dataset.facts.get(name), int)]
    if missing:
        raise KinoflowError(f"The manifest of {data} lacks {', '.join(missing)}; make the bucket output again.")
    facts = {option: dataset.facts[fact] for fact, option in NETWORK_FACTS.items()}
    return STDiT2Config.model_validate({**network.model_dump(), **facts})


class StageBatches:
    """The planned batches of a stage, its tensors read ahead; `reader` is a context manager.

    Args:
        config: of the stage.
        data: URI of the bucket output.
        dataset: its manifest.
        folder: for local copies.
        taken: clips to leave out.

    Raises:
        KinoflowError: there is no plan for the stage, it is too short, or its clips do not fit the frame masks.
    """

    def __init__(
        self, config: TrainConfig, data: str, dataset: Manifest, folder: Path, taken: TakenDown | None = None
    ) -> None:
        name = training_plan(config.name)
        if name not in dataset.files:
            raise KinoflowError(f"{data} holds no plan for the stage {config.name!r}; bucket it first.")
        manifest.fetch(data, folder, [name])
        plan = PlanFile.open(folder / name)
        self._plan = without(plan, taken.mask(plan)) if taken else plan
        self._check(config, data)
        self.reader = BatchReader(open_index(data, folder), self._plan, ahead_bytes=config.read_ahead_bytes)

    def _check(self, config: TrainConfig, data: str) -> None:
        wanted, planned = config.steps * config.batches_per_step, len(self._plan)
        if planned < wanted:
            raise KinoflowError(
                f"The plan of {data} for the stage {config.name!r} holds {planned} batches, training needs {wanted} "
                f"({config.steps} steps of {config.batches_per_step}); bucket again for that."
            )
        if config.masks is not None:
            for num_frames in self._plan.num_frames:
                config.masks.check_num_frames(num_frames)

    def clip_ids(self, first_batch: int, end_batch: int) -> list[str]:
        """Every clip of the batches first_batch .. end_batch - 1, once."""
        batches = (self._plan.rows(batch)["clip_id"] for batch in range(first_batch, end_batch))
        return sorted({clip_id for clip_ids in batches for clip_id in clip_ids})
