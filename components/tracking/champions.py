"""Who is champion: a history that only grows, and the alias in the model registry that follows it.

MLflow has no lock and moves an alias for whoever asks last, but it never changes a parameter: of two that write the
same parameter of a run the second is refused. So the history of a model's champions is kept as numbered parameters of
one run. Whoever wants to move the alias first writes the next entry; who is refused looks again and decides anew.
An alias that was moved by hand in MLflow's own pages is found by the mark that an entry has been carried out, and by
nobody being about to move it: a slow one may set it to a champion of before, and corrects that before it says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from components.tracking import names
from components.tracking.sending import find_or_create_experiment
from components.tracking.versions import retry_clash

if TYPE_CHECKING:
    from mlflow import MlflowClient

POINTER, DONE = "kinoflow.champions_run", "done"
MOVING, MOVED = "moving.", "moved."
MOVE_TIMEOUT_MS = 60_000
"""Who has not moved the alias by then is taken for dead."""
MAX_REASON_CHARS = 2000
HAND_PAUSE_S = 1.0
MAX_ATTEMPTS = 100

Kind = Literal["promoted", "rolled back", "moved by hand"]


@dataclass(frozen=True)
class Entry:
    """One change of the champion.

    Attributes:
        kind: what happened.
        version: who is champion from now on.
        before: who was; 0 for nobody.
        reason: one sentence.
        by: who or what decided.
        at_ms: since 1970.
        id: tells two entries of equal words apart.
    """

    kind: Kind
    version: int
    before: int
    reason: str
    by: str
    at_ms: int
    id: str


class Champions:
    """The champions of one registered model, which has a version.

    Args:
        client: from `connect`.
        name: of the registered model.
        alias: that follows the history.
    """

    def __init__(self, client: MlflowClient, name: str, alias: str) -> None:
        self._client, self._name, self._alias = client, name, alias
        self._run_id: str = self._find_run() or self._make_run()

    def history(self) -> list[Entry]:
        """Every change so far, the oldest first."""
        return self._read()[0]

    def current(self) -> int | None:
        """The champion, once the alias agrees with the history; None while there is none."""
        for _ in range(MAX_ATTEMPTS):
            entries, done = self._read()
            held = self._held()
            if not entries:
                # an alias that is older than the history
                if held is None or self._append(entries, "moved by hand", held, 0, "it held the alias before", ""):
                    return held
            elif not done:
                self._carry_out(entries)
            elif held in (entries[-1].version, None):
                return held
            elif self._moved_by_hand(held):
                reason = f"the alias {self._alias} was moved to it in MLflow"
                self._append(entries, "moved by hand", held, entries[-1].version, reason, "")
        raise RuntimeError(f"the champion of {self._name} changes all the time")

    def change(
        self, kind: Kind, to: Callable[[int | None, list[Entry]], tuple[int, str] | None], by: str
    ) -> Entry | None:
        """Make another version champion.

        Args:
            kind: what happens.
            to: told the champion (None while there is none) and the history; gives the new champion and the reason, or
                None to leave all as it is. Called again whenever somebody else was faster.
            by: who or what decides.
        """
        for _ in range(MAX_ATTEMPTS):
            champion = self.current()
            entries, _ = self._read()
            wanted = to(champion, entries)
            if wanted is None or wanted[0] == champion:
                return None
            entry = self._append(entries, kind, wanted[0], champion or 0, wanted[1], by)
            if entry is not None:
                self._carry_out([*entries, entry])
                return entry
        raise RuntimeError(f"the champion of {self._name} changes all the time")

    # --- the history ---------------------------------------------------------------------------------------------

    def _read(self) -> tuple[list[Entry], bool]:
        """All entries, and whether the last was carried out."""
        params = self._client.get_run(self._run_id).data.params
        entries: list[Entry] = []
        while (text := params.get(_key(len(entries)))) is not None:
            entries.append(Entry(**json.loads(text)))
        return entries, bool(entries) and f"{_key(len(entries) - 1)}.{DONE}" in params

    def _append(
        self, entries: list[Entry], kind: Kind, version: int, before: int, reason: str, by: str
    ) -> Entry | None:
        """The new entry; None when somebody else wrote one first."""
        entry = Entry(kind, version, before, reason[:MAX_REASON_CHARS], by, _now_ms(), uuid4().hex)
        return entry if self._claim(self._run_id, _key(len(entries)), json.dumps(asdict(entry))) else None

    def _claim(self, run_id: str, key: str, value: str) -> bool:
        """Write a parameter that nobody has written."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_param(run_id, key, value)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            return False
        return True

    # --- the alias -----------------------------------------------------------------------------------------------

    def _held(self) -> int | None:
        held = self._client.get_registered_model(self._name).aliases.get(self._alias)
        return None if held is None else int(held)

    def _carry_out(self, entries: list[Entry]) -> None:
        """Let the alias follow the last entry, also when one more is written meanwhile."""
        mover = uuid4().hex
        self._claim(self._run_id, MOVING + mover, str(_now_ms()))
        while True:
            version = str(entries[-1].version)
            retry_clash(partial(self._client.set_registered_model_alias, self._name, self._alias, version))
            now, _ = self._read()
            if len(now) == len(entries):
                self._claim(self._run_id, f"{_key(len(entries) - 1)}.{DONE}", "yes")
                self._claim(self._run_id, MOVED + mover, "yes")
                return
            entries = now

    def _moved_by_hand(self, held: int) -> bool:
        """Whether the alias stays where it is: one that somebody is about to correct does not."""
        time.sleep(HAND_PAUSE_S)
        return not self._is_being_moved() and self._held() == held

    def _is_being_moved(self) -> bool:
        params = self._client.get_run(self._run_id).data.params
        since = {key.removeprefix(MOVING): int(at_ms) for key, at_ms in params.items() if key.startswith(MOVING)}
        return any(
            MOVED + mover not in params and _now_ms() - at_ms < MOVE_TIMEOUT_MS for mover, at_ms in since.items()
        )

    # --- the run -------------------------------------------------------------------------------------------------

    def _find_run(self) -> str:
        return str(self._client.get_registered_model(self._name).tags.get(names.CHAMPIONS, ""))

    def _make_run(self) -> str:
        """The run that keeps the history; who comes first decides which, by a parameter of the oldest version's run."""
        versions = self._client.search_model_versions(f"name = '{self._name}'")
        runs = {int(each.version): each.run_id for each in versions if each.run_id}
        first = runs[min(runs)] if runs else ""
        if not first:
            experiment = find_or_create_experiment(self._client, "kinoflow")
        else:
            experiment = self._client.get_run(first).info.experiment_id
        name = f"champions of {self._name}"
        run_id = str(self._client.create_run(experiment, tags={names.TASK: "champions"}, run_name=name).info.run_id)
        self._client.set_terminated(run_id)
        if first and not self._claim(first, POINTER, run_id):
            self._client.delete_run(run_id)
            run_id = str(self._client.get_run(first).data.params[POINTER])
        retry_clash(partial(self._client.set_registered_model_tag, self._name, names.CHAMPIONS, run_id))
        return run_id


def line_of(entries: list[Entry]) -> list[int]:
    """Champions from the first to the present one, as if nothing that was rolled back had happened."""
    line: list[int] = []
    for entry in entries:
        earlier = [place for place, version in enumerate(line[:-1]) if version == entry.version]
        if entry.kind == "rolled back" and earlier:
            del line[earlier[-1] + 1 :]
        else:
            line.append(entry.version)
    return line


def _key(index: int) -> str:
    return f"{index + 1:05d}"


def _now_ms() -> int:
    return int(time.time() * 1000)
