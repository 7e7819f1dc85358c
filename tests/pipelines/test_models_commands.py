"""`kinoflow models`, `promote` and `rollback` as a person types them."""

import json
from pathlib import Path
from uuid import uuid4

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from components.champion import challenge
from components.errors import KinoflowError
from components.promotion_config import MetricRule, PromotionConfig
from components.tracking import names
from pipelines.cli import app
from tests.conftest import S3Server


def kinoflow(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=True, env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_models_are_shown_promoted_and_rolled_back(
    mlflow_server: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"model-{uuid4().hex[:8]}"
    with pytest.raises(KinoflowError, match=r"No model .* is registered yet"):
        kinoflow("models", "--model", name)
    client, rule = MlflowClient(mlflow_server), PromotionConfig(metrics=(MetricRule(metric="quality"),))
    client.create_registered_model(name)
    for number, quality in enumerate((0.5, 0.8, 0.1), 1):
        scores = json.dumps({"quality": quality, "quality_low": quality - 0.05, "quality_high": quality + 0.05})
        tags = {names.SCORES: scores, names.CHECKPOINT_DIGEST: str(quality), names.RUN: f"run-{number}"}
        client.create_model_version(name, f"s3://bucket/{number}", tags=tags | {names.RULE: rule.model_dump_json()})
        challenge(rule)(client, name, number)
    shown = kinoflow("models", "--model", name)
    rows = [line.split() for line in shown.splitlines()]
    assert [row[:3] for row in rows[1:4:1] if row[0] == "2"] == [["2", "champion", "run-2"]]
    assert "quality 0.8 (0.75 to 0.85)" in shown and "s3://bucket/2" in shown
    assert "version 2 becomes champion in place of version 1, by evaluation: wins against version 1 on quality" in shown
    told = json.loads(kinoflow("models", "--model", name, "--json"))
    assert [each["version"] for each in told["versions"]] == [3, 2, 1] and len(told["history"]) == 2
    with pytest.raises(KinoflowError, match=r"Version 3 of .* is not promoted: it loses .* With --force"):
        kinoflow("promote", "3", "--model", name)
    forced = kinoflow("promote", "3", "--force", "--by", "ada", "--reason", "prettier", "--model", name)
    assert "version 3 becomes champion in place of version 2, by ada: prettier; loses against version 2" in forced
    assert kinoflow("promote", "3", "--model", name) == "version 3 is champion already\n"
    back = kinoflow("rollback", "--by", "ada", "--reason", "not after all", "--model", name)
    assert "version 2 is champion again in place of version 3, by ada: not after all" in back
