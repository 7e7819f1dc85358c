"""Who is champion of a registered model: an evaluation's challenge, promotion by a person, and the way back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pydantic import ValidationError

from components.config import EvaluateConfig
from components.errors import KinoflowError
from components.manifest import Manifest, digest_of, load
from components.plan_file import held_out_plan
from components.promotion import Decision, decide
from components.promotion_config import PromotionConfig
from components.registry import CHAMPION, REGISTERED_MODEL, tracking_address
from components.tracking import names
from components.tracking.champions import Champions, Entry, line_of
from components.tracking.tracker import Registered
from components.tracking.versions import ModelVersion, open_registry, read_versions, tag_version

if TYPE_CHECKING:
    from components.tracking.sending import MlflowClient

EVALUATION = "evaluation"
ENCODERS = ("autoencoder", "text_encoder")
NOT_MEASURING = ("promotion", "grid", "registered_model", "alias", "num_saved", "num_threads", "batch_size")
"""Settings of an evaluation that change no number."""


def challenge(rule: PromotionConfig) -> Registered:
    """What an evaluation does with the version that it has registered: let it challenge the champion.

    Args:
        rule: what the version must do to win; whether the alias moves by itself.
    """

    def judge(client: MlflowClient, name: str, number: int) -> str:
        decision, entry, champion = _compete(client, name, number, rule, moves=rule.automatic, by=EVALUATION)
        _mark(client, name, number, champion, decision, entry)
        if entry is not None:
            return f"version {number} of {name} is champion: {decision.reason}"
        if number == champion:
            return f"version {number} of {name} is champion already"
        would = "would be champion, but promotion is not automatic" if decision.wins else "is not champion"
        return f"version {number} of {name} {would}: {decision.reason}"

    return judge


def measured_tags(config: EvaluateConfig, published: Manifest) -> dict[str, str]:
    """By which rule a version is judged, and what must be equal for its numbers to be comparable with another's.

    Args:
        config: of the evaluation.
        published: manifest of the checkpoint.
    """
    settings = config.model_dump(mode="json", exclude=set(NOT_MEASURING))
    told = {names.RULE: config.promotion.model_dump_json(), names.MEASURED: digest_of(settings)}
    dataset = _dataset(published)
    return told | ({names.HELD_OUT: dataset} if dataset else {})


def _dataset(published: Manifest) -> str:
    """Digest of what a held-out loss depends on besides the checkpoint: encoders and held-out batches."""
    try:
        data = load(published.annotations.get("data", ""))
    except KinoflowError:
        return ""
    plan = held_out_plan(str(published.facts.get("stage", "")))
    deciding = [name for name in data.files if name == plan or name.split("/")[0] in ENCODERS]
    return digest_of({name: data.files[name].sha256 for name in deciding})


def promote(
    number: int, *, by: str, reason: str = "", force: bool = False, name: str = REGISTERED_MODEL
) -> tuple[Entry | None, str]:
    """Make a version champion because a person wants it.

    Args:
        number: of the version.
        by: who.
        reason: why; kept with the change.
        force: also when the version does not win by the rule that it was evaluated with.
        name: of the registered model.

    Returns:
        the change (None when it is champion already), and what the rule says.

    Raises:
        KinoflowError: there is no such version, it does not win, or the server cannot be reached.
    """
    with open_registry(tracking_address()) as client:
        version = _version(client, name, number)
        rule = rule_of(version)
        decision, entry, champion = _compete(client, name, number, rule, moves=True, by=by, force=force, why=reason)
        if champion == number:
            return None, decision.reason
        if entry is None:
            raise KinoflowError(
                f"Version {number} of {name} is not promoted: it {decision.reason}. "
                "With --force it becomes champion all the same."
            )
        _mark(client, name, number, champion, Decision(True, entry.reason), entry)
        return entry, decision.reason


def rollback(*, by: str, reason: str = "", name: str = REGISTERED_MODEL, alias: str = CHAMPION) -> Entry:
    """Make the champion before the present one champion again.

    Raises:
        KinoflowError: there was none before, or the server cannot be reached.
    """
    with open_registry(tracking_address()) as client:
        there = {version.version for version in _versions(client, name)}

        def before(champion: int | None, history: list[Entry]) -> tuple[int, str]:
            earlier = [version for version in line_of(history)[:-1] if version in there and version != champion]
            if champion is None or not earlier:
                raise KinoflowError(f"The model {name!r} has had no champion before the present one; promote another.")
            return earlier[-1], reason or f"version {champion} was taken back"

        entry = Champions(client, name, alias).change("rolled back", before, by)
        assert entry is not None
        tag_version(client, name, entry.before, {names.SUCCEEDED: _dated(entry, f"version {entry.version} again")})
        tag_version(client, name, entry.version, {names.VERDICT: _dated(entry, "champion again")})
        return entry


def history_of(name: str = REGISTERED_MODEL, alias: str = CHAMPION) -> list[Entry]:
    """Every change of the champion, the oldest first.

    Raises:
        KinoflowError: the server cannot be reached.
    """
    with open_registry(tracking_address()) as client:
        if not read_versions(client, name):
            return []
        champions = Champions(client, name, alias)
        champions.current()
        return champions.history()


def rule_of(version: ModelVersion) -> PromotionConfig:
    """The rule that a version was evaluated with; the default one where it has none."""
    try:
        return PromotionConfig.model_validate_json(version.tags.get(names.RULE, "{}"))
    except ValidationError:
        return PromotionConfig()  # of another release, or edited


def _compete(
    client: MlflowClient, name: str, number: int, rule: PromotionConfig, *, moves: bool, by: str, force: bool = False,
    why: str = "",
) -> tuple[Decision, Entry | None, int | None]:  # fmt: skip
    """The decision, the change if there was one, and who was champion when it was decided."""
    told: list[tuple[Decision, int | None]] = []

    def to(champion: int | None, history: list[Entry]) -> tuple[int, str] | None:
        versions = {version.version: version for version in _versions(client, name)}
        if champion == number:
            told.append((Decision(True, "is champion already"), champion))
            return None
        decision = decide(rule, versions.get(champion or 0), versions[number])
        told.append((decision, champion))
        if not (force or (decision.wins and moves)):
            return None
        return number, "; ".join(filter(None, [why, decision.reason]))

    entry = Champions(client, name, rule.alias).change("promoted", to, by)
    decision, champion = told[-1]
    return decision, entry, champion


def _mark(
    client: MlflowClient, name: str, number: int, champion: int | None, decision: Decision, entry: Entry | None
) -> None:
    """Leave the reason on both versions."""
    if number == champion:
        return
    if entry is not None:
        tag_version(client, name, number, {names.VERDICT: _dated(entry, "champion")})
        if champion is not None:
            tag_version(client, name, champion, {names.SUCCEEDED: _dated(entry, f"version {number}")})
        return
    today = time.strftime("%Y-%m-%d")
    tag_version(client, name, number, {names.VERDICT: f"not champion ({today}): {decision.reason}"})
    if champion is not None:
        tag_version(client, name, champion, {names.CHALLENGED: f"version {number} ({today}): {decision.reason}"})


def _dated(entry: Entry, who: str) -> str:
    day = time.strftime("%Y-%m-%d", time.localtime(entry.at_ms / 1000))
    return f"{who} ({day}, {entry.by}): {entry.reason}"


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    versions = read_versions(client, name)
    if not versions:
        raise KinoflowError(f"No model {name!r} is registered yet; an evaluation registers its checkpoint.")
    return versions


def _version(client: MlflowClient, name: str, number: int) -> ModelVersion:
    versions = _versions(client, name)
    for version in versions:
        if version.version == number:
            return version
    raise KinoflowError(f"The model {name!r} has no version {number}; it has {versions[-1].version} to "
                        f"{versions[0].version}.")  # fmt: skip
