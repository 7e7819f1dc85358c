"""Curate: ingested files become clips, each kept or dropped for one reason.

Every frame is decoded once; shot detection and all measures see it in that pass. Decisions are thresholds on the
measured columns. The ledger adds up: sources = with shots + rejected, shots = kept + dropped.

`curate` does it all in one process. For many files `curate_part` measures a part of them and `merge` decides about
all; the clips table is the same to the byte, whatever the number of parts.
"""

from __future__ import annotations

from components.config import CurateConfig
from components.curate.ledger import CurateReport
from components.curate.merge import KIND, TABLE, merge, publish
from components.curate.parts import PartReport, analyse_files, curate_part

__all__ = ["KIND", "TABLE", "CurateReport", "PartReport", "curate", "curate_part", "merge"]


def curate(config: CurateConfig, videos: str, objects: str, out: str) -> CurateReport:
    """Find, measure, caption and decide the clips of all ingested files, and publish the `clips` table.

    Args:
        config: shot detection, thresholds, captions, split.
        videos: URI prefix that `ingest` published.
        objects: URI prefix of the content-addressed objects.
        out: URI prefix of the published table.

    Raises:
        KinoflowError: nothing is published at `videos`, nothing has a caption, more files failed than the config
            allows, or no clip is left.
    """
    return publish(config, videos, objects, out, lambda _, table: analyse_files(config, table, objects))
