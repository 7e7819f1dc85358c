"""From rows of a plan to tensors: what training and evaluation read of a bucket output."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import polars as pl
import torch
from torch import Tensor

from components.plan_file import PlanFile, Shape
from components.read_ahead import AHEAD_BYTES, TensorReader
from components.shards import Location, ShardIndex
from model.batch import Batch

logger = logging.getLogger(__name__)

BATCHES_DESCRIBED_AT_ONCE = 32
"""Looking up the rows of neighbours together takes little longer than those of one batch."""


@dataclass(frozen=True)
class _Rows:
    """What the plan says of one batch."""

    index: int
    shape: Shape
    fps: list[float]

    def batch(self, tensors: list[Tensor]) -> Batch:
        """The batch of these tensors: all latents, then all text features."""
        size = len(self.fps)
        text_features, text_mask = pad_text(tensors[size:])
        return Batch(
            latents=torch.stack(tensors[:size]),
            text_features=text_features,
            text_mask=text_mask,
            num_frames=self.shape.num_frames,
            height=self.shape.height,
            width=self.shape.width,
            fps=torch.tensor(self.fps),
            bucket=f"{self.shape.resolution} {self.shape.num_frames} frames",
        )


class BatchReader:
    """The batches of a plan, by their index.

    Args:
        shards: Where the tensors lie, for example from `shared_tensors.open_index`.
        plan: What each batch holds.
        ahead_bytes: Memory for tensors read ahead and for those used last.

    Attributes:
        wait_s: Seconds that `read` took so far, all of which its caller waited.
    """

    def __init__(self, shards: ShardIndex, plan: PlanFile, *, ahead_bytes: int = AHEAD_BYTES) -> None:
        self.wait_s = 0.0
        self._plan = plan
        self._shards = shards
        self._tensors: TensorReader[_Rows] = TensorReader(ahead_bytes)
        self._assembler = ThreadPoolExecutor(1, thread_name_prefix="kinoflow-batch")
        self._next: Future[tuple[int, Batch] | None] | None = None

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._plan)

    def __enter__(self) -> Self:
        """The reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the reader."""
        self.close()

    def close(self) -> None:
        """End reading ahead and let go of every tensor."""
        self._settle()
        self._assembler.shutdown()
        self._tensors.close()

    def schedule(self, indices: Iterable[int]) -> None:
        """Read these batches in the background, because `read` will ask for them in this order.

        A schedule that was not used up is dropped. After its last batch, or once another one was asked for than was
        scheduled, `read` reads on demand.

        Args:
            indices: Taken lazily, by a thread.
        """
        self._settle()
        self._tensors.schedule(self._coming(indices))
        self._next = self._assembler.submit(self._assemble)

    def read(self, index: int) -> Batch:
        """The batch of that index.

        Raises:
            KinoflowError: The plan is shorter, or a tensor is missing or damaged.
        """
        began_s = time.perf_counter()
        try:
            scheduled = self._next.result() if self._next is not None else None
            if scheduled is not None and scheduled[0] == index:
                self._next = self._assembler.submit(self._assemble)
                return scheduled[1]
            self._next = None
            if scheduled is not None:
                logger.warning("Batch %d was scheduled, %d was asked for: no reading ahead.", scheduled[0], index)
                self._tensors.schedule(())
            rows, locations = self._described(index, index + 1)[index]
            return rows.batch(self._tensors.get(locations))
        finally:
            self.wait_s += time.perf_counter() - began_s

    def resolution(self, index: int) -> str:
        """Name of the batch's resolution, for example "240p"."""
        return self._plan.shape(index).resolution

    def _assemble(self) -> tuple[int, Batch] | None:
        """The next scheduled batch and its index, made while its reader is busy with the one before."""
        scheduled = self._tensors.next()
        return None if scheduled is None else (scheduled[0].index, scheduled[0].batch(scheduled[1]))

    def _settle(self) -> None:
        """Wait for the batch that is being made; nobody wants it or its error any more."""
        if self._next is not None:
            wait([self._next])
            self._next = None

    def _coming(self, indices: Iterable[int]) -> Iterator[tuple[_Rows, list[Location]]]:
        described: dict[int, tuple[_Rows, list[Location]]] = {}
        at_once = 1  # the first batch is waited for
        for index in indices:
            if index not in described:
                described = self._described(index, index + at_once)
                at_once = min(2 * at_once, BATCHES_DESCRIBED_AT_ONCE)
            yield described[index]

    def _described(self, first: int, end: int) -> dict[int, tuple[_Rows, list[Location]]]:
        """What the plan says of batches first .. end - 1 as far as it goes, and where their tensors lie."""
        shapes = {first: self._plan.shape(first)}
        shapes |= {index: self._plan.shape(index) for index in range(first + 1, min(end, len(self._plan)))}
        table = self._plan.table(first, end)
        different = pl.concat([table["latent_key"], table["text_key"]]).unique(maintain_order=True).to_list()
        location = dict(zip(different, self._shards.locations(different), strict=True))
        described = {}
        for (index,), rows in table.group_by("batch", maintain_order=True):
            keys = [*rows["latent_key"], *rows["text_key"]]
            batch = int(index)
            described[batch] = _Rows(batch, shapes[batch], rows["fps"].to_list()), [location[key] for key in keys]
        return described


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
