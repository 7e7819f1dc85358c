"""Tasks of the graph with nothing to do: before where a run starts in the chain, or after where it stops."""

from __future__ import annotations

import logging
from typing import Literal

from components import manifest, store
from components.config import Section, parse
from components.errors import KinoflowError

logger = logging.getLogger(__name__)

SKIP_MARK = '{"skip":'


class Skip(Section):
    """What a task gets for a config when it has nothing to do.

    Attributes:
        skip: before where the run starts (its result is there already), or after where it stops.
        root: URI of the run that has the result; this run's own when empty.
    """

    skip: Literal["before", "after"]
    root: str = ""

    def source(self, out: str) -> str:
        """Where the result of the task lies that would write to `out`."""
        node = out.rstrip("/").rsplit("/", 1)[-1]
        return store.join(self.root, node) if self.root else out


def read_skip(config: str) -> Skip | None:
    """What `configure` says of a task that is skipped; None for a config."""
    return parse(Skip, config, "config") if config.startswith(SKIP_MARK) else None


def skipped_result(stage: str, node: str, skip: Skip, out: str) -> str:
    """The URI that a skipped task returns: what is there already, or what it would have written.

    Raises:
        KinoflowError: the run starts after this task, but there is no result of it.
    """
    source = skip.source(out)
    if not has_result(stage, skip):
        logger.info("%s is left out", node)
        return source
    from pipelines.dvc import final_checkpoint

    try:
        uri = final_checkpoint(source) if stage == "train" else source
        manifest.load(uri)
    except KinoflowError as error:
        raise KinoflowError(f"The run starts after {node}, which must be there already: {error}") from error
    logger.info("%s is taken from %s", node, uri)
    return uri


def has_result(stage: str, skip: Skip) -> bool:
    """Whether a skipped task has a result; nobody reads the shots of a part once they are merged."""
    return skip.skip == "before" and stage != "curate.curate_part"
