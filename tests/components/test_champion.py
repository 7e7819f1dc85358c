"""The champion of a registered model on a real MLflow server."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import uuid4

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.champion import challenge, history_of, promote, rollback, rule_of
from components.config import TrackingConfig
from components.errors import KinoflowError
from components.promotion_config import MetricRule, PromotionConfig
from components.registry import find_version, list_versions
from components.tracking import names, open_tracker
from components.tracking.champions import Entry, line_of
from components.tracking.sending import register_version

RULE = PromotionConfig(metrics=(MetricRule(metric="quality"),))


@pytest.fixture
def name() -> str:
    return f"model-{uuid4().hex[:8]}"


def evaluated(name: str, quality: float, rule: PromotionConfig = RULE) -> str:
    """Register a checkpoint of that quality and let it challenge; what is said of the champion."""
    client = MlflowClient()
    with suppress(MlflowException):
        client.create_experiment("tests")
    run = client.create_run(client.get_experiment_by_name("tests").experiment_id).info.run_id
    number = register_version(client, run, name, f"s3://bucket/{quality}", "candidate", tags_of(quality, rule))
    return challenge(rule)(client, name, number)


def tags_of(quality: float, rule: PromotionConfig = RULE) -> dict[str, str]:
    return {
        names.SCORES: json.dumps({"quality": quality, "quality_low": quality - 0.05, "quality_high": quality + 0.05}),
        names.MEASURED: "m", names.CHECKPOINT_DIGEST: uuid4().hex, names.RULE: rule.model_dump_json(),
    }  # fmt: skip


def test_an_evaluation_waits_for_the_verdict(mlflow_server: str, name: str) -> None:
    config = TrackingConfig(experiment="tests", run_name=f"run-{uuid4().hex[:8]}")
    with open_tracker(config, task="evaluate", params={}) as tracker:
        tracker.register_model(name, "s3://bucket/a", "candidate", tags_of(0.5), challenge(RULE))
        assert tracker.verdict(timeout_s=60) == f"version 1 of {name} is champion: there was no champion"
    assert champion(name) == 1


def test_a_verdict_does_not_wait_for_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with open_tracker(TrackingConfig(), task="evaluate", params={}, close_timeout_s=1) as tracker:
        tracker.register_model("kinoflow", "s3://bucket/a", "candidate", {}, challenge(RULE))
        started_s = time.monotonic()
        assert tracker.verdict(timeout_s=250) == ""
        assert time.monotonic() - started_s < 100


def champion(name: str) -> int:
    return find_version(f"models:/{name}@champion").version


def test_a_challenger_must_win_and_both_versions_say_why(mlflow_server: str, name: str) -> None:
    assert evaluated(name, 0.5) == f"version 1 of {name} is champion: there was no champion"
    told = evaluated(name, 0.52)
    assert told.startswith(f"version 2 of {name} is not champion: no more than chance against version 1 on quality")
    assert champion(name) == 1
    told = evaluated(name, 0.8)
    assert told.startswith(f"version 3 of {name} is champion: wins against version 1 on quality: 0.8 (0.75 to 0.85)")
    assert champion(name) == 3
    best, second, first = list_versions(name=name)
    assert best.aliases == ("candidate", "champion")
    assert best.tags[names.VERDICT].startswith("champion (") and "0.8 (0.75 to 0.85)" in best.tags[names.VERDICT]
    assert second.tags[names.VERDICT].startswith("not champion (") and "chance" in second.tags[names.VERDICT]
    assert first.tags[names.CHALLENGED].startswith("version 2 (")
    assert first.tags[names.SUCCEEDED].startswith("version 3 (") and "0.8 (0.75" in first.tags[names.SUCCEEDED]
    assert [(entry.version, entry.before, entry.by) for entry in history_of(name)] == [
        (1, 0, "evaluation"), (3, 1, "evaluation"),
    ]  # fmt: skip


def test_a_rule_may_only_advise(mlflow_server: str, name: str) -> None:
    rule = RULE.model_copy(update={"automatic": False})
    assert evaluated(name, 0.5, rule).endswith(
        "would be champion, but promotion is not automatic: there was no champion"
    )
    assert list_versions(name=name)[0].aliases == ("candidate",) and history_of(name) == []
    entry, _ = promote(1, by="ada", name=name)
    assert entry is not None and (champion(name), history_of(name)[-1].by) == (1, "ada")


def test_a_person_promotes_and_rolls_back(mlflow_server: str, name: str) -> None:
    for quality in (0.5, 0.8, 0.3):
        evaluated(name, quality)
    assert champion(name) == 2 and rule_of(list_versions(name=name)[0]) == RULE
    with pytest.raises(KinoflowError, match=r"Version 3 of .* is not promoted: it loses against version 2 on quality"):
        promote(3, by="ada", name=name)
    assert champion(name) == 2
    entry, rule_says = promote(3, by="ada", reason="it looks better", force=True, name=name)
    assert entry is not None and entry.reason == f"it looks better; {rule_says}" and rule_says.startswith("loses")
    assert champion(name) == 3 and promote(3, by="ada", name=name) == (None, "is champion already")
    assert rollback(by="ada", reason="no, it does not", name=name).version == 2 and champion(name) == 2
    assert rollback(by="ada", name=name).version == 1 and champion(name) == 1
    with pytest.raises(KinoflowError, match="has had no champion before the present one"):
        rollback(by="ada", name=name)
    versions = {version.version: version for version in list_versions(name=name)}
    assert "(" in versions[3].tags[names.SUCCEEDED] and "no, it does not" in versions[3].tags[names.SUCCEEDED]
    assert versions[2].tags[names.SUCCEEDED].startswith("version 1 again")
    assert [entry.kind for entry in history_of(name)] == ["promoted"] * 3 + ["rolled back"] * 2
    with pytest.raises(KinoflowError, match="has no version 9; it has 1 to 3"):
        promote(9, by="ada", name=name)
    with pytest.raises(KinoflowError, match="No model 'nobody' is registered yet"):
        rollback(by="ada", name="nobody")


def test_an_alias_moved_by_hand_is_respected_and_recorded(mlflow_server: str, name: str) -> None:
    client = MlflowClient(mlflow_server)
    for quality in (0.5, 0.4):
        evaluated(name, quality)
    client.set_registered_model_alias(name, "champion", "2")
    assert evaluated(name, 0.45).startswith(f"version 3 of {name} is not champion: no more than chance against vers")
    assert champion(name) == 2
    by_hand = history_of(name)[-1]
    assert (by_hand.kind, by_hand.version, by_hand.before) == ("moved by hand", 2, 1)
    assert rollback(by="ada", name=name).version == 1
    client.delete_registered_model_alias(name, "champion")
    assert evaluated(name, 0.1) == f"version 4 of {name} is champion: there was no champion"


def test_an_alias_from_before_the_history_begins_it(mlflow_server: str, name: str) -> None:
    client = MlflowClient(mlflow_server)
    client.create_registered_model(name)
    client.create_model_version(name, "s3://bucket/old", tags={names.SCORES: '{"quality":0.6}', names.MEASURED: "m"})
    client.set_registered_model_alias(name, "champion", "1")
    assert "is not champion: loses against version 1" in evaluated(name, 0.4)
    assert "is champion: wins against version 1" in evaluated(name, 0.9)
    assert rollback(by="ada", name=name).version == 1


def test_a_killed_promotion_is_carried_out_by_the_next(mlflow_server: str, name: str) -> None:
    client = MlflowClient(mlflow_server)
    for quality in (0.5, 0.52):
        evaluated(name, quality)
    run = client.get_registered_model(name).tags[names.CHAMPIONS]
    killed = Entry("promoted", 2, 1, "it was better", "evaluation", 0, "id")
    client.log_param(run, "00002", json.dumps(vars(killed)))
    assert champion(name) == 1
    assert history_of(name)[-1] == killed
    assert champion(name) == 2


@pytest.mark.parametrize("order", [(0.9, 0.7), (0.7, 0.9)])
def test_of_two_that_finish_at_once_the_better_is_champion(
    mlflow_server: str, name: str, order: tuple[float, ...]
) -> None:
    evaluated(name, 0.3)
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda quality: evaluated(name, quality), (*order, 0.5, 0.1)))
    best = find_version(f"models:/{name}@champion")
    assert best.metrics["quality"] == 0.9, told
    history = history_of(name)
    assert history[-1].version == best.version
    assert [entry.before for entry in history] == [0, *(entry.version for entry in history[:-1])]


def test_the_first_two_at_once_share_one_history(mlflow_server: str, name: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda quality: evaluated(name, quality), (0.2, 0.4, 0.6, 0.8)))
    assert find_version(f"models:/{name}@champion").metrics["quality"] == 0.8
    runs = MlflowClient(mlflow_server).search_runs(
        [MlflowClient(mlflow_server).get_experiment_by_name("tests").experiment_id],
        f"attributes.run_name = 'champions of {name}'",
    )
    assert len(runs) == 1


def test_the_line_of_champions_forgets_what_was_rolled_back() -> None:
    def line(*changes: tuple[str, int]) -> list[int]:
        return line_of([Entry(kind, version, 0, "", "", 0, "") for kind, version in changes])  # type: ignore[arg-type]

    up, down = "promoted", "rolled back"
    assert line((up, 1), (up, 2), (up, 3), (down, 2)) == [1, 2]
    assert line((up, 1), (up, 2), (up, 1), (down, 2)) == [1, 2]
    assert line((up, 1), (up, 2), (up, 1), (up, 2), (down, 1)) == [1, 2, 1]
    assert line((up, 1), (up, 2), (down, 1), (up, 3), (down, 1)) == [1]
