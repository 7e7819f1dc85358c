"""The commands `kinoflow takedown`, `kinoflow takedowns` and `kinoflow lineage`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.terminal import BUCKET, make_console


def takedown(
    source: Annotated[list[str] | None, typer.Option(help="Everything from this source.")] = None,
    licence: Annotated[list[str] | None, typer.Option(help="Everything under this licence.")] = None,
    path: Annotated[list[str] | None, typer.Option(help="This source file; with / at its end, this folder.")] = None,
    clip: Annotated[list[str] | None, typer.Option(help="This clip, however its file is cut later.")] = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the takedown.")] = "",
    root: Annotated[str, typer.Option(help="URI below which all runs lie.")] = BUCKET,
    by: Annotated[str, typer.Option(help="Who asks; the user of this machine when absent.")] = "",
    revoke: Annotated[str | None, typer.Option(help="End the takedown of this id instead.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it touches and write nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
) -> None:
    """Stop the use of clips, and list everything that was made with them.

    Loaders leave the clips out from now on, plans to come do not name them, and nothing is deleted.

    Examples:

    - `kinoflow takedown --source flickr --reason "asked by its owner" --dry-run`
    - `kinoflow takedown --path videos/0001.mp4 --reason "wrong licence" --root work`
    """
    from pipelines.tracing import Asked, print_answer, reachable, revoke_below, take_down

    with reachable(root):
        if revoke is not None:
            for prefix in revoke_below(root, revoke, reason=reason or "not given", by=by):
                typer.echo(f"{revoke} below {prefix} is no longer in force")
            return
        asked = Asked(source or [], licence or [], path or [], clip or [], reason, by)
        answer = take_down(root, asked, dry_run=dry_run)
    if json_:
        typer.echo(answer.model_dump_json(indent=1))
    else:
        print_answer(answer, make_console())


def takedowns(
    objects: Annotated[str, typer.Argument(help="URI prefix of the source objects.")],
    out: Annotated[Path | None, typer.Option(help="Write them as JSON instead; no takedown is an empty list.")] = None,
) -> None:
    """List the takedowns in force on source objects, with what they name and why.

    Example: `kinoflow takedowns work/objects`
    """
    from components import store
    from components.takedown import beside, in_force
    from pipelines.tracing import reachable

    with reachable(objects):
        filed = in_force(beside(objects))
    if out is None:
        for each in filed:
            typer.echo(f"{each.id}: {each.tombstone.rules} ({each.tombstone.reason})")
        return
    told = [{"id": each.id, **each.tombstone.model_dump(mode="json", include={"rules", "reason"})} for each in filed]
    store.write_bytes(str(out), f"{json.dumps(told, indent=1)}\n".encode())


def lineage(
    target: Annotated[str, typer.Argument(help="URI of an output, a run, a clip id, or the path of a source file.")],
    root: Annotated[str, typer.Option(help="URI below which all runs lie.")] = BUCKET,
    clips: Annotated[Path | None, typer.Option(help="Write the ids of the clips a checkpoint has seen.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell where something comes from, and what was made from it.

    Examples:

    - `kinoflow lineage demo`
    - `kinoflow lineage work/stage3/step-00000040 --root work --clips seen.txt`
    """
    from pipelines.tracing import lineage_of, print_lineage, reachable, write_clip_ids

    with reachable(target if target.startswith("s3://") else root):
        found = lineage_of(target, root)
        count = write_clip_ids(target, clips) if clips is not None else None
    if json_:
        typer.echo(found.model_dump_json(indent=1))
    else:
        print_lineage(found, make_console())
    if count is not None:
        typer.echo(f"wrote {count} clip ids to {clips}", err=True)
