"""`kinoflow whatif`: other thresholds on clips that are already measured, answered in seconds."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from components.config import CurateConfig, load, parse
from components.errors import KinoflowError
from pipelines.changes import changes as parse_changes
from pipelines.config import RUN_CONFIG, RunConfig, load_run_config, override
from pipelines.terminal import make_console

if TYPE_CHECKING:
    import polars as pl

    from components.curate.whatif import Comparison

DECIDING = ("rules", "captions", "seed", "eval_share")
"""Parts of a curation's configuration that ask for no decoding."""

BucketCounts = dict[str, dict[str, tuple[int, int]]]
"""Of each stage by bucket: training clips before and after."""


@dataclass(frozen=True)
class Subject:
    """A clips table and what is known of how it was made.

    Attributes:
        clips: URI prefix that `curate` published.
        objects: URI prefix of the objects it was cut from; empty when unknown.
        run: the whole run's configuration, where there is one.
    """

    clips: str
    objects: str = ""
    run: RunConfig | None = None


def whatif(
    clips: Annotated[str, typer.Argument(help="URI prefix that curate published, or the name of a run.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value: key=value, e.g. rules.min_motion=0.1.")
    ] = None,
    rules: Annotated[Path | None, typer.Option(help="YAML of a curate section, as --write makes it.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="Whose buckets; a run's own if absent.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Write a PNG of clips close to the changed limits.")] = None,
    objects: Annotated[str | None, typer.Option(help="Where the objects lie, for pictures; a run's own.")] = None,
    each: Annotated[int, typer.Option(min=1, max=100, help="Pictured clips on each side of a limit.")] = 6,
    json_: Annotated[Path | None, typer.Option("--json", help="Write all numbers as JSON.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write the curate section with these limits as YAML.")] = None,
) -> None:
    """Show what other thresholds would keep of clips that are already measured; nothing is decoded or changed.

    Yield and hours, clips by bucket of every stage, and what each rule takes alone and what only it takes.

    Examples:

    - `kinoflow whatif demo --set rules.min_motion=0.1 --pictures margin.png`
    - `kinoflow whatif work/curate --rules stricter.yaml --preset demo`
    """
    from pipelines.local.services import home_folder, running_services

    subject = _subject(clips, home_folder().parent, preset, objects)
    remote = any(uri.startswith("s3://") for uri in (subject.clips, subject.objects))
    services = running_services(home_folder(), only_store=True) if remote else contextlib.nullcontext()
    with services:
        _answer(subject, parse_changes(set_), rules, pictures, each, json_, write)


def _answer(
    subject: Subject,
    changes: dict[str, Any],
    rules: Path | None,
    pictures: Path | None,
    each: int,
    json_: Path | None,
    write: Path | None,
) -> None:
    from components.curate.whatif import compare, decide_again, reads_embeddings
    from pipelines.whatif_tables import print_comparison

    with _table(subject.clips) as (read, made_with):
        old = made_with or (subject.run.curate if subject.run else CurateConfig())
        new = _changed(old, rules, changes)
        if pictures is not None and not subject.objects:
            raise KinoflowError(
                "--pictures needs --objects: the URI prefix of the objects that the clips were cut from."
            )
        table = read(reads_embeddings(new, made_with))
        opened, after = decide_again(table, new, made_with)
        comparison = compare(table, opened, after, new)
        buckets = count_buckets(subject.run, table, after) if subject.run else {}
        print_comparison(comparison, buckets, make_console())
        if made_with is None and subject.run is None:
            typer.echo("The table does not say what it was made with: limits that are not given are the defaults.")
        if pictures is not None:
            typer.echo(_draw(opened, old, new, subject.objects, pictures, each))
    if json_ is not None:
        _write_text(json_, json.dumps(_document(comparison, buckets, new), indent=1) + "\n")
    if write is not None:
        section = new.model_dump(mode="json", exclude_defaults=True) | {"rules": new.rules.model_dump(mode="json")}
        _write_text(write, yaml.safe_dump(section, sort_keys=False))
        typer.echo(
            f"wrote {write}: the section `curate` of a preset, or `python -m components.curate --config {write}`"
        )


def _subject(given: str, project: Path, preset: str | None, objects: str | None) -> Subject:
    run = load_run_config(preset) if preset else None
    folder = project / "runs" / given
    if "/" in given or not (folder / "arguments.json").is_file():
        if "/" not in given and not Path(given).is_dir():
            raise KinoflowError(
                f"There is no run {given!r} in {folder.parent}, and no such folder; give a run's name or the address of"
                " a clips table."
            )
        return Subject(given.rstrip("/"), objects or "", run)
    arguments = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
    if run is None and (folder / RUN_CONFIG).is_file():
        run = load(RunConfig, folder / RUN_CONFIG)
    return Subject(f"{arguments['root']}/curate", objects or arguments["objects"], run)


@contextlib.contextmanager
def _table(clips: str) -> Iterator[tuple[Callable[[bool], pl.DataFrame], CurateConfig | None]]:
    """The columns that rules read, with CLIP's features if asked; and what the table was made with if it says so."""
    from components import manifest, tables
    from components.curate import KIND, TABLE
    from components.curate.whatif import IGNORED_COLUMNS

    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        published = manifest.fetch(clips, Path(scratch), [TABLE], kind=KIND)
        table = tables.scan(Path(scratch) / TABLE, tables.CLIPS)

        def read(with_embeddings: bool) -> pl.DataFrame:
            ignored = {*IGNORED_COLUMNS} - ({"embedding"} if with_embeddings else set())
            return table.select(name for name in tables.CLIPS if name not in ignored).collect()

        told = published.facts.get("config")
        made_with = parse(CurateConfig, json.dumps(told), f"config in {clips}") if told else None
        yield read, made_with


def _changed(old: CurateConfig, rules: Path | None, changes: dict[str, Any]) -> CurateConfig:
    values = old.model_dump(mode="json")
    if rules is not None:
        section = load(CurateConfig, rules).model_dump(mode="json", include=set(DECIDING), exclude_unset=True)
        for name, value in section.items():
            values[name] = values[name] | value if isinstance(value, dict) else value
    for key, value in changes.items():
        dotted = key.removeprefix("curate.")
        if dotted.split(".")[0] not in DECIDING:
            raise KinoflowError(
                f"--set {key}: that asks for measuring again; whatif changes {', '.join(DECIDING)} only, for example "
                "rules.min_motion=0.1."
            )
        override(values, dotted, value)
    return parse(CurateConfig, values, "--set" if changes else str(rules or "the curate config"))


def count_buckets(run: RunConfig, before: pl.DataFrame, after: pl.DataFrame) -> BucketCounts:
    """Training clips of every stage by bucket as "resolution x frames", and those that no bucket takes."""
    import numpy as np
    import polars as pl

    from components.kept_clips import COLUMNS, Clips
    from model.buckets import choose_buckets

    is_train = ((pl.col("outcome") == "kept") & (pl.col("split") == "train")).fill_null(False)
    read = (name for name in COLUMNS if name != "caption_sha256")
    both = after.select(*read, was=before.select(is_train).to_series(), now=is_train)
    either = both.filter(pl.col("was") | pl.col("now")).with_columns(caption_sha256=pl.lit("0" * 32)).sort("clip_id")
    clips = Clips.of(either, run.seed, run.draws)
    found: BucketCounts = {}
    for stage in run.stages:
        choice = choose_buckets(stage.buckets, *clips.sizes, clips.seeds, uniform=clips.uniform)
        triples = stage.buckets.triples
        was, now = (
            np.bincount(choice.index[either[side].to_numpy()] + 1, minlength=len(triples) + 1)
            for side in ("was", "now")
        )
        counts = {f"{resolution} x {frames}": (0, 0) for resolution, frames in stage.buckets.pairs} | {"none": (0, 0)}
        names = ["none", *(f"{bucket.resolution} x {bucket.num_frames}" for bucket in triples)]
        for name, first, second in zip(names, was.tolist(), now.tolist(), strict=True):
            counts[name] = (counts[name][0] + first, counts[name][1] + second)
        found[stage.name] = counts
    return found


def _draw(opened: pl.DataFrame, old: CurateConfig, new: CurateConfig, objects: str, path: Path, each: int) -> str:
    from components.curate.margin import draw_margin, marginal_clips
    from components.curate.rules import threshold_rules

    rules = threshold_rules(new.rules)
    changed = [rule for rule in rules if rule not in threshold_rules(old.rules)]
    marginal = marginal_clips(opened, rules, changed or rules, each)
    if not marginal:
        return "There is no clip at the margin to show."
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = draw_margin(marginal, objects, path)
    return f"wrote {path}: {shown} of {len(marginal)} clips at the margin"


def _document(comparison: Comparison, buckets: BucketCounts, config: CurateConfig) -> dict[str, Any]:
    counts = {
        stage: {name: {"before": was, "after": now} for name, (was, now) in rows.items()}
        for stage, rows in buckets.items()
    }
    told = config.model_dump(mode="json", include=set(DECIDING))
    return {**comparison.model_dump(mode="json"), "buckets": counts, "config": told}


def _write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise KinoflowError(f"Could not write {path}: {error.strerror}.") from error
