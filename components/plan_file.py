"""The plan of a training stage as one compact file: memory-mapped, read batch by batch, never held whole.

A safetensors file of small columns: eight bytes a sample (clip, first frame), a few a batch (where it begins, bucket,
epoch), and one row for each clip that the plan uses. Everything else of `tables.PLAN`, keys and names, is derived
when a batch is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from components import tables
from components.errors import KinoflowError
from components.texts import Texts

FORMAT_VERSION = 1
_HEADER_KEY = "plan"
_LEAST_SHARE_USED = 0.5
"""Clips are copied into the file as they are unless a smaller share of them than this occurs."""
_LENGTH_BYTES = 8  # of the header, at the start of every safetensors file

Int64 = NDArray[np.int64]


def training_plan(stage: str) -> str:
    """Name of a stage's training plan below the prefix of a bucket output."""
    return f"plan-{stage}.safetensors"


def held_out_plan(stage: str) -> str:
    """Name of a stage's held-out plan below the prefix of a bucket output."""
    return f"eval-{stage}.safetensors"


def text_key(caption: str) -> str:
    """Key of a caption's features: clips with the same words share them."""
    return f"text:{tables.caption_digest(caption)}"


class Shape(NamedTuple):
    """What the samples of one bucket have in common."""

    resolution: str
    num_frames: int
    aspect: str
    height: int
    width: int


class PlannedBucket(NamedTuple):
    """A bucket that the plan uses, and how much."""

    shape: Shape
    batches: int
    samples: int

    @property
    def name(self) -> str:
        """ "resolution/frames/aspect"."""
        return f"{self.shape.resolution}/{self.shape.num_frames}/{self.shape.aspect}"


@dataclass(frozen=True)
class PlannedClips:
    """Of each clip what a plan says about it.

    Attributes:
        ids: N clip ids.
        captions: (N, 2) uint64, the words of each caption's digest.
        fps: (N,) float32, as told to the network.
    """

    ids: Texts
    captions: NDArray[np.uint64]
    fps: NDArray[np.float32]

    def take(self, rows: Int64) -> PlannedClips:
        """These rows only."""
        return PlannedClips(self.ids.take(rows), self.captions[rows], self.fps[rows])


@dataclass(frozen=True)
class PlanFile:
    """Batches of a stage in their order; `open` gives one whose columns are mapped from its file.

    Attributes:
        frame_interval: Source frames per frame of a sample.
        buckets: Those that occur.
        clips: Those that occur, among others.
        num_clips: How many occur.
        offsets: (batches + 1,) int64, the first row of each batch.
        bucket: (batches,) position in `buckets`.
        epoch: (batches,) int32.
        clip: (rows,) uint32, position in `clips`.
        start_frame: (rows,) int32, first frame of the window, counted from the clip's start.
    """

    frame_interval: int
    buckets: tuple[PlannedBucket, ...]
    clips: PlannedClips
    num_clips: int
    offsets: Int64
    bucket: NDArray[np.int32]
    epoch: NDArray[np.int32]
    clip: NDArray[np.uint32]
    start_frame: NDArray[np.int32]

    @classmethod
    def build(
        cls,
        shapes: Sequence[Shape],
        clips: PlannedClips,
        *,
        frame_interval: int,
        sizes: Int64,
        bucket: NDArray[np.integer],
        epoch: NDArray[np.integer],
        clip: NDArray[np.integer],
        start_frame: NDArray[np.integer],
    ) -> Self:
        """A plan in memory, cut down to the buckets and (where most do not) the clips that occur in it.

        Args:
            shapes: What `bucket` points into.
            clips: What `clip` points into.
            frame_interval: Source frames per frame of a sample.
            sizes: (batches,) samples of each batch.
            bucket: (batches,) index of its shape.
            epoch: (batches,).
            clip: (rows,), batch after batch.
            start_frame: (rows,).
        """
        batches = np.bincount(bucket, minlength=len(shapes))
        samples = np.bincount(bucket, weights=sizes, minlength=len(shapes)).astype(np.int64)
        buckets_used, clips_used = batches > 0, np.zeros(len(clips.ids), dtype=np.bool_)
        clips_used[clip] = True
        num_clips = int(np.count_nonzero(clips_used))
        if num_clips < _LEAST_SHARE_USED * len(clips_used):
            clip = (np.cumsum(clips_used, dtype=np.int32) - 1)[clip]
            clips = clips.take(np.flatnonzero(clips_used))
        return cls(
            frame_interval=frame_interval,
            buckets=tuple(
                PlannedBucket(shape, int(batches[i]), int(samples[i]))
                for i, shape in enumerate(shapes)
                if buckets_used[i]
            ),
            clips=clips,
            num_clips=num_clips,
            offsets=np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))),
            bucket=(np.cumsum(buckets_used) - 1)[bucket].astype(np.int32),
            epoch=epoch.astype(np.int32, copy=False),
            clip=clip.astype(np.uint32, copy=False),
            start_frame=start_frame.astype(np.int32, copy=False),
        )

    def save(self, path: Path) -> None:
        """Write the file; the same plan gives the same bytes."""
        header = {
            "format_version": FORMAT_VERSION,
            "frame_interval": self.frame_interval,
            "num_clips": self.num_clips,
            "buckets": [[*shape, batches, samples] for shape, batches, samples in self.buckets],
        }
        columns = {
            "offsets": self.offsets,
            "bucket": self.bucket,
            "epoch": self.epoch,
            "clip": self.clip,
            "start_frame": self.start_frame,
            "clip_id_bytes": self.clips.ids.data,
            "clip_id_offsets": self.clips.ids.offsets,
            "caption": self.clips.captions,
            "fps": self.clips.fps,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        contiguous = {name: np.ascontiguousarray(column) for name, column in columns.items()}
        save_file(contiguous, path, metadata={_HEADER_KEY: json.dumps(header, sort_keys=True)})

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file; only what is asked for later is read.

        Raises:
            KinoflowError: There is no such file, or it is no plan that this version reads.
        """
        try:
            header, columns = _mapped(path)
            if header["format_version"] != FORMAT_VERSION:
                raise KinoflowError(
                    f"The plan {path} has format {header['format_version']}, this version reads {FORMAT_VERSION}; "
                    "make the bucket output again."
                )
            plan = cls(
                frame_interval=int(header["frame_interval"]),
                buckets=tuple(PlannedBucket(Shape(*values[:5]), values[5], values[6]) for values in header["buckets"]),
                clips=PlannedClips(
                    Texts(columns["clip_id_bytes"], columns["clip_id_offsets"]), columns["caption"], columns["fps"]
                ),
                num_clips=int(header["num_clips"]),
                **{name: columns[name] for name in ("offsets", "bucket", "epoch", "clip", "start_frame")},
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise KinoflowError(f"{path} is not a readable plan ({error}); make the bucket output again.") from error
        return plan

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.bucket)

    @property
    def num_samples(self) -> int:
        """Number of rows."""
        return len(self.clip)

    @property
    def num_epochs(self) -> int:
        """Number of epochs that are begun."""
        return int(self.epoch.max()) + 1 if len(self) else 0

    @property
    def samples_per_bucket(self) -> dict[str, int]:
        """Samples by "resolution/frames/aspect"."""
        return dict(sorted((bucket.name, bucket.samples) for bucket in self.buckets))

    @property
    def num_frames(self) -> tuple[int, ...]:
        """Different frame counts, ascending."""
        return tuple(sorted({bucket.shape.num_frames for bucket in self.buckets}))

    def shape(self, batch: int) -> Shape:
        """What the samples of a batch have in common.

        Raises:
            KinoflowError: The plan is shorter.
        """
        self._check(batch)
        return self.buckets[int(self.bucket[batch])].shape

    def rows(self, batch: int) -> pl.DataFrame:
        """One batch with the columns of `tables.PLAN`.

        Raises:
            KinoflowError: The plan is shorter.
        """
        self._check(batch)
        return self.table(batch, batch + 1)

    def table(self, first: int = 0, last: int | None = None) -> pl.DataFrame:
        """Batches `first` to `last` (exclusive) with the columns of `tables.PLAN`, by batch and slot."""
        first, last, _ = slice(first, last).indices(len(self))
        offsets = self.offsets[first : last + 1]
        rows, sizes = slice(int(offsets[0]), int(offsets[-1])), np.diff(offsets)
        clip = self.clip[rows]
        columns = {
            "batch": np.repeat(np.arange(first, last), sizes),
            "slot": np.arange(rows.stop - rows.start) - np.repeat(offsets[:-1] - rows.start, sizes),
            "epoch": np.repeat(self.epoch[first:last], sizes),
            "start_frame": self.start_frame[rows],
            "fps": self.clips.fps[clip],
        }
        samples = self._described(clip, np.repeat(self.bucket[first:last], sizes))
        joined = pl.concat([pl.DataFrame(columns), samples], how="horizontal").with_columns(self._latent_key())
        return joined.select(pl.col(name).cast(kind) for name, kind in tables.PLAN.items())

    def windows(self) -> pl.DataFrame:
        """Different (clip, window, size) of the plan: clip_id, start_frame, those of `Shape`, latent_key, text_key."""
        bucket = np.repeat(self.bucket, np.diff(self.offsets))
        order = np.lexsort((self.start_frame, bucket, self.clip))
        clip, bucket, start_frame = self.clip[order], bucket[order], self.start_frame[order]
        is_first = np.zeros(len(order), dtype=np.bool_)
        is_first[:1] = True
        is_first[1:] = (clip[1:] != clip[:-1]) | (bucket[1:] != bucket[:-1]) | (start_frame[1:] != start_frame[:-1])
        starts = pl.DataFrame({"start_frame": start_frame[is_first]})
        return pl.concat([self._described(clip[is_first], bucket[is_first]), starts], how="horizontal").with_columns(
            self._latent_key()
        )

    def keys(self, first: int = 0, last: int | None = None) -> list[str]:
        """Different keys of the latents and text features of batches `first` to `last` (exclusive), sorted."""
        table = self.table(first, last)
        return pl.concat([table["latent_key"], table["text_key"]]).unique().sort().to_list()

    def _check(self, batch: int) -> None:
        if not 0 <= batch < len(self):
            raise KinoflowError(f"The plan holds {len(self)} batches; there is no batch {batch}.")

    def _described(self, clip: NDArray[np.uint32], bucket: NDArray[np.int32]) -> pl.DataFrame:
        """Clip id, shape and text key of samples."""
        shapes = pl.DataFrame([b.shape for b in self.buckets], schema=_SHAPE_SCHEMA, orient="row")
        captions = self.clips.captions[clip]
        own = pl.DataFrame(
            {
                "clip_id": pl.Series([self.clips.ids[row] for row in clip.tolist()], dtype=pl.String),
                "text_key": pl.Series(
                    [f"text:{high:016x}{low:016x}" for high, low in captions.tolist()], dtype=pl.String
                ),
            }
        )
        return pl.concat([own, shapes[bucket]], how="horizontal")

    def _latent_key(self) -> pl.Expr:
        """Everything that shapes a latent: equal keys, equal latents, over stages and epochs alike."""
        interval = pl.when(pl.col("num_frames") == 1).then(1).otherwise(self.frame_interval)
        place = "{}@{}+{}/{}x{}x{}"
        return pl.format(
            place, "clip_id", "start_frame", pl.col("num_frames") * interval, "num_frames", "height", "width"
        ).alias("latent_key")


_SHAPE_SCHEMA: dict[str, Any] = {name: tables.PLAN[name] for name in Shape._fields}


def _mapped(path: Path) -> tuple[dict[str, Any], Mapping[str, NDArray[Any]]]:
    """The plan's own header and its columns, mapped."""
    with safe_open(path, framework="numpy") as file:  # checks that every column lies inside the file
        metadata = file.metadata() or {}
    header = json.loads(metadata[_HEADER_KEY])
    content: NDArray[np.uint8] = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES].tobytes(), "little")
    columns = {}
    for name, entry in json.loads(content[_LENGTH_BYTES:start].tobytes()).items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in entry["data_offsets"])
            columns[name] = content[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return header, columns


_DTYPES = {
    name: np.dtype(kind).newbyteorder("<")
    for name, kind in {"U8": "u1", "U16": "u2", "U32": "u4", "U64": "u8", "I32": "i4", "I64": "i8", "F32": "f4"}.items()
}
