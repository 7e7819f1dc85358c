"""The commands `kinoflow models`, `kinoflow promote` and `kinoflow rollback`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from components.errors import KinoflowError
from pipelines.terminal import make_console

if TYPE_CHECKING:
    from components.tracking.champions import Entry
    from components.tracking.versions import ModelVersion

ModelOption = Annotated[str, typer.Option("--model", help="Name in the model registry.")]
ReasonOption = Annotated[str, typer.Option(help="Why; kept with the change.")]
ByOption = Annotated[str, typer.Option(help="Who decides; the user of this machine when absent.")]
MAX_SCORES = 6


def models(
    model: ModelOption = "kinoflow",
    json_: Annotated[bool, typer.Option("--json", help="Print everything that is known as JSON.")] = False,
) -> None:
    """Show the registered checkpoints: aliases, scores, lineage, and how the champion changed.

    Examples: `kinoflow models`, `kinoflow models --json`
    """
    from components.champion import history_of
    from components.registry import list_versions

    with _tracking():
        versions, history = list_versions(name=model), history_of(model)
    if json_:
        told = {"versions": [asdict(each) for each in versions], "history": [asdict(each) for each in history]}
        typer.echo(json.dumps(told, indent=1))
        return
    if not versions:
        raise KinoflowError(f"No model {model!r} is registered yet; an evaluation registers its checkpoint.")
    console = make_console()
    console.print(_versions_table(versions))
    for entry in history:
        console.print(_told(entry), markup=False, highlight=False, soft_wrap=True)


def promote(
    version: Annotated[int, typer.Argument(help="Number of the version.", min=1)],
    force: Annotated[bool, typer.Option("--force", help="Also when it does not win by the rule.")] = False,
    reason: ReasonOption = "",
    by: ByOption = "",
    model: ModelOption = "kinoflow",
) -> None:
    """Make a version champion, if it wins by the rule that it was evaluated with.

    Examples: `kinoflow promote 3`, `kinoflow promote 3 --force --reason "people prefer its videos"`
    """
    from components.champion import promote as promote_version
    from pipelines.tracing import person

    with _tracking():
        entry, rule = promote_version(version, by=by or person(), reason=reason, force=force, name=model)
    typer.echo(_told(entry) if entry else f"version {version} {rule}")


def rollback(reason: ReasonOption = "", by: ByOption = "", model: ModelOption = "kinoflow") -> None:
    """Go back to the champion before the present one.

    Example: `kinoflow rollback --reason "flickers on real prompts"`
    """
    from components.champion import rollback as roll_back
    from pipelines.tracing import person

    with _tracking():
        typer.echo(_told(roll_back(by=by or person(), reason=reason, name=model)))


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (models, promote, rollback):
        app.command()(command)


@contextmanager
def _tracking() -> Iterator[None]:
    """The server that the environment names, else the embedded one."""
    from pipelines.local.services import home_folder, running_services

    with running_services(home_folder(), wait_for_tracking=True):
        yield


def _versions_table(versions: list[ModelVersion]) -> Table:
    from components.scores import read_scores
    from components.tracking import names

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("version", justify="right")
    for column in ("aliases", "run", "stage", "registered"):
        table.add_column(column)
    for column in ("scores", "checkpoint"):
        table.add_column(column, overflow="fold")
    for each in versions:
        scores = read_scores(each.metrics)
        shown = sorted(scores, key=lambda name: (not scores[name].has_interval, name.count("/"), name))[:MAX_SCORES]
        lines = [f"{name} {scores[name]}" for name in shown]
        if len(scores) > len(shown):
            lines.append(f"and {len(scores) - len(shown)} more")
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.created_ms / 1000))
        told = (", ".join(each.aliases), each.tags.get(names.RUN, ""), each.tags.get(names.STAGE, ""), when)
        cells = (str(each.version), *told, "\n".join(lines), each.checkpoint)
        table.add_row(*(escape(cell) for cell in cells))
    return table


def _told(entry: Entry) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.at_ms / 1000))
    before = f" in place of version {entry.before}" if entry.before else ""
    by = f", by {entry.by}" if entry.by else ""
    what = {"promoted": "becomes champion", "rolled back": "is champion again", "moved by hand": "is champion"}[
        entry.kind
    ]
    return f"{when}  version {entry.version} {what}{before}{by}: {entry.reason}"
