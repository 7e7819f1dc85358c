"""From measured shots to decided clips: near-duplicates, rules, captions, the split; published as the `clips` table."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from components import layout, manifest, store, tables
from components.config import CurateConfig
from components.curate import ledger
from components.curate import parts as measuring
from components.curate.analysed import measures_of
from components.curate.captioning import caption_clips
from components.curate.duplicates import with_near_duplicate_groups
from components.curate.ledger import CurateReport
from components.curate.report import write_report
from components.curate.rules import apply_rules
from components.curate.semantic import with_semantic_groups
from components.curate.split import assign_split
from components.errors import KinoflowError
from components.leakage import check_leakage
from components.manifest import Manifest
from components.takedown import ANNOTATION as TOMBSTONES
from components.takedown import Filed, beside, concerning, identity, in_force, mark

logger = logging.getLogger(__name__)

KIND = "clips"
TABLE = "clips.parquet"


def merge(config: CurateConfig, videos: str, objects: str, shots: str, parts: int, out: str) -> CurateReport:
    """Decide about the shots of all parts and publish the `clips` table.

    Args:
        config: thresholds, captions, split; shot detection and scores as the parts were made with.
        videos: URI prefix that `ingest` published.
        objects: URI prefix of the content-addressed objects.
        shots: URI prefix below which the parts lie, as `layout.part_folder` names them.
        parts: how many there are.
        out: URI prefix of the published table.

    Raises:
        KinoflowError: a part is missing or made from something else, more files failed than the config allows, or no
            clip is left.
    """
    return publish(config, videos, objects, out, lambda source, _: _gather(config, source, shots, parts))


def publish(
    config: CurateConfig,
    videos: str,
    objects: str,
    out: str,
    measure: Callable[[Manifest, pl.DataFrame], pl.DataFrame],
) -> CurateReport:
    """Publish the `clips` table of the shots that `measure` gives, unless it is there already.

    Args:
        config, videos, objects, out: as for `merge`.
        measure: from the manifest and the table of `videos` to all shots, sorted by clip id.
    """
    source, table = measuring.read_videos(videos)
    # The number of processes changes nothing in the result, nor does the number of parts.
    recorded = config.model_copy(update={"workers": None})
    filed = concerning(table, in_force(beside(objects)))
    inputs = {**measuring.inputs_of(config, source), **identity([each.id for each in filed])}
    found = manifest.reusable(out, KIND, config=recorded, inputs=inputs)
    if found is None:
        ledger.check_captions(config, videos, table)
        shots = measure(source, table)
        ledger.check_failures(config, table, shots)
        clips = decide(config, shots, objects, filed)
        with manifest.publish(out, KIND, config=recorded, inputs=inputs) as publication:
            tables.write(clips, publication.directory / TABLE, tables.CLIPS)
            counts = ledger.count(table, clips)
            write_report(publication.directory / layout.PAGE, config, table, clips, objects)
            facts = counts.model_dump(mode="json", exclude={"manifest_digest"})
            publication.facts.update({**facts, "config": recorded.model_dump(mode="json")})
            publication.annotations.update(
                {"videos": videos, TOMBSTONES: beside(objects), layout.ANALYSED: measures_of(objects, config)}
            )
        found = publication.manifest
        assert found is not None
    report = CurateReport.model_validate({**found.facts, "manifest_digest": found.digest})
    logger.info("kept %d of %d shots of %d files in %s", report.kept, report.shots, report.sources, out)
    ledger.check_kept(report, f"{out}/{TABLE}")
    return report


def decide(config: CurateConfig, shots: pl.DataFrame, objects: str, filed: Sequence[Filed] = ()) -> pl.DataFrame:
    """Measured shots, sorted by clip id, to decided clips in the same order; those that tombstones name are dropped."""
    grouped = with_semantic_groups(with_near_duplicate_groups(shots), config.rules.max_similarity)
    marked = mark(grouped, filed)
    captioned = caption_clips(marked, objects, config, layout.beside(objects, layout.CAPTIONS))
    decided = apply_rules(captioned, config.rules, caption_required=config.captions.required)
    clips = assign_split(decided, config.seed, config.eval_share)
    check_leakage(clips)
    return tables.with_caption_digests(clips)


def _gather(config: CurateConfig, source: Manifest, shots: str, count: int) -> pl.DataFrame:
    """The shots of all parts, sorted by clip id."""
    found = []
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        for part in range(count):
            uri = store.join(shots, layout.part_folder(part, count))
            folder = Path(scratch) / str(part)
            published = manifest.fetch(uri, folder, [measuring.TABLE], kind=measuring.KIND)
            made_with = manifest.digest_of(measuring.recorded(config, part, count))
            if published.inputs != measuring.inputs_of(config, source) or published.config_digest != made_with:
                raise KinoflowError(f"{uri} was made from other videos or with other settings; make this part again.")
            found.append(tables.read(folder / measuring.TABLE, tables.CLIPS))
    return pl.concat(found).sort("clip_id")
