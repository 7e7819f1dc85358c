"""Shares of one checkpoint that several ranks write side by side; the first rank publishes when all are there.

Each other rank puts a receipt (size and SHA-256 of its file) beside its part. The receipts go through the store, so the
ranks need no collective call while they save in the background.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from components import store
from components.errors import KinoflowError
from components.manifest import FileEntry
from model.checkpoint import TrainingState, checkpoint_files, part_files

RECEIPTS = "receipts"
PATIENCE_S, POLL_S = 900.0, 0.25


class Receipt(BaseModel):
    """That a part is in the store.

    Attributes:
        attempt: of the group of processes; receipts of an earlier one say nothing about files being written now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    attempt: int
    entry: FileEntry


def write_part(uri: str, state: TrainingState, attempt: int) -> None:
    """Write this rank's files of a checkpoint below `uri`, then their receipts."""
    for name, content in checkpoint_files(state).items():
        sent = store.write(
            store.join(uri, name), store.BytesContent(content) if isinstance(content, bytes) else content
        )
        receipt = Receipt(attempt=attempt, entry=FileEntry(size_bytes=sent.size_bytes, sha256=sent.sha256))
        store.write_bytes(_receipt(uri, name), receipt.model_dump_json().encode())


def wait_for_parts(
    uri: str, state: TrainingState, attempt: int, *, patience_s: float = PATIENCE_S
) -> Mapping[str, FileEntry]:
    """The parts of all ranks but the first, once every one of them is in the store.

    Raises:
        KinoflowError: one did not come in time; its rank was killed or hangs.
    """
    names, deadline_s = part_files(state)[1:], time.monotonic() + patience_s
    entries: dict[str, FileEntry] = {}
    while missing := [name for name in names if name not in entries]:
        for name in missing:
            receipt = _read(uri, name)
            if receipt is not None and receipt.attempt == attempt:
                entries[name] = receipt.entry
        if len(entries) == len(names):
            break
        if time.monotonic() > deadline_s:
            raise KinoflowError(
                f"{store.join(uri, missing[0])} was not written within {patience_s:.0f} s; a rank hangs."
            )
        time.sleep(POLL_S)
    for name in names:
        store.delete(_receipt(uri, name))
    return entries


def _receipt(uri: str, name: str) -> str:
    return store.join(uri, RECEIPTS, f"{name.rsplit('/', 1)[-1]}.json")


def _read(uri: str, name: str) -> Receipt | None:
    try:
        return Receipt.model_validate_json(store.read_bytes(_receipt(uri, name)))
    except (store.ObjectMissing, ValidationError):
        return None
