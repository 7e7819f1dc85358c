"""The command line of one training stage, the same on one machine and on many; importing it needs no torch."""

from __future__ import annotations

from components.config import TrackingConfig, TrainConfig


def train_command(
    config: TrainConfig, tracking: TrackingConfig, *, data: str, parent: str | None, out: str
) -> tuple[str, ...]:
    """What follows `python` or `torchrun` for `components.train.train` with these arguments."""
    return (
        "-m", "components.train", "--config", config.model_dump_json(), "--tracking", tracking.model_dump_json(),
        "--data", data, "--out", out, *(("--parent", parent) if parent else ()),
    )  # fmt: skip
