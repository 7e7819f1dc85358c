"""From rows of a plan to tensors: what training and evaluation read of a bucket output."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from components.plan_file import PlanFile
from components.shards import ShardReader
from model.batch import Batch


class BatchReader:
    """The batches of a plan, by their index.

    Args:
        directory: local copy of a bucket output (its index and the shards the plan needs).
        plan: What each batch holds.

    Raises:
        KinoflowError: there is no readable index.
    """

    def __init__(self, directory: Path, plan: PlanFile) -> None:
        self._plan = plan
        self._shards = ShardReader(directory)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._plan)

    def __enter__(self) -> Self:
        """The reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the shards."""
        self._shards.close()

    def read(self, index: int) -> Batch:
        """The batch of that index.

        Raises:
            KinoflowError: the plan is shorter, or a tensor is missing or damaged.
        """
        rows = self._plan.rows(index)
        latents = torch.stack([self._shards.get(key) for key in rows["latent_key"]])
        text_features, text_mask = pad_text([self._shards.get(key) for key in rows["text_key"]])
        first = rows.row(0, named=True)
        return Batch(
            latents=latents,
            text_features=text_features,
            text_mask=text_mask,
            num_frames=first["num_frames"],
            height=first["height"],
            width=first["width"],
            fps=torch.tensor(rows["fps"].to_list()),
            bucket=f"{first['resolution']} {first['num_frames']} frames",
        )

    def resolution(self, index: int) -> str:
        """Name of the batch's resolution, for example "240p"."""
        return self._plan.shape(index).resolution


def pad_text(features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Captions of different lengths side by side.

    Args:
        features: (M_b, Cy) each.

    Returns:
        features (B, M, Cy) filled up with zeros to the longest caption, and mask (B, M) int64, 1 where a token is.
    """
    lengths = torch.tensor([len(tokens) for tokens in features])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(features, batch_first=True), mask.long()
