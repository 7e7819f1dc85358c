"""`kinoflow submit` and `follow` against a strict server of the v2beta1 API: outcomes, outages, and sentences."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.kubeflow import KubeflowError, kubeflow_cron
from tests.kfp_server import KfpServer, Refusal

IMAGE = "registry.example/kinoflow-python@sha256:" + "0" * 64
ORDER = [
    "configure", "ingest", "curate", "bucket", "train stage1", "train stage2", "train stage3", "evaluate", "outcome",
]  # fmt: skip
TOKEN = "planted-token-4711"


@dataclass
class Shown:
    """What a command left behind."""

    code: int
    out: str
    err: str


Submit = Callable[..., Shown]


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    for name in list(os.environ):
        if name.startswith(("KF_", "MLFLOW_", "KINOFLOW_")):
            monkeypatch.delenv(name)
    server = KfpServer()
    server.start()
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    yield server
    server.stop()


@pytest.fixture
def kinoflow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Submit:
    """Run a command in this process."""

    def call(*arguments: str) -> Shown:
        monkeypatch.setattr(sys, "argv", ["kinoflow", *arguments])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        return Shown(code, shown.out, shown.err)

    return call


def arguments(*more: str) -> tuple[str, ...]:
    return ("submit", "-p", "smoke", "--videos", "s3://videos/raw", "--image", IMAGE, "--poll", "0.05", *more)


def test_a_run_is_followed_to_success(kfp: KfpServer, kinoflow: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hidden@mlflow.example:5000")
    shown = kinoflow(*arguments("--name", "first", "--base", "s3://team", "--source-version", "abc"))
    assert shown.code == 0, shown
    (run,) = kfp.held.runs.values()
    assert run["display_name"] == "first"
    assert run["runtime_config"]["parameters"] == {
        "source": "s3://videos/raw", "root": "s3://team/runs/first", "objects": "s3://team/objects",
        "latents": "s3://team/latents", "run_name": "first", "experiment": "kinoflow", "source_version": "abc",
    }  # fmt: skip
    assert f"{kfp.url}/#/runs/details/{run['run_id']}" in shown.out
    assert "http://mlflow.example:5000/#/experiments" in shown.out and "hidden" not in shown.out + shown.err
    done = [line.split(" ", 1)[1] for line in shown.out.splitlines() if line.endswith(": succeeded")]
    assert done == [f"{name}: succeeded" for name in ORDER]
    assert shown.out.splitlines()[-1] == "The run has succeeded."


def test_the_same_graph_is_one_version_and_a_changed_one_another(kfp: KfpServer, kinoflow: Submit) -> None:
    for change in ("seed=1", "seed=1", "seed=2"):
        shown = kinoflow(*arguments("--register-only", "--set", change))
        assert shown.code == 0, shown
    assert [one["display_name"] for one in kfp.held.pipelines.values()] == ["kinoflow"]
    names = [one["display_name"] for one in kfp.held.versions.values()]
    assert len(names) == 2 and all(name.startswith("smoke-") for name in names)
    assert not kfp.held.runs and not kfp.held.experiments


def test_a_failed_run_ends_with_1_and_says_where_and_why(kfp: KfpServer, kinoflow: Submit) -> None:
    kfp.behaviour.fail_task = "train-2"
    shown = kinoflow(*arguments())
    assert shown.code == 1
    assert "train stage2: failed (main: exit code 1)" in shown.out
    assert shown.out.splitlines()[-1] == "The run has failed in train stage2: task train-2 failed."


def test_a_cancelled_run_has_a_code_of_its_own(kfp: KfpServer, kinoflow: Submit) -> None:
    kfp.behaviour.cancel = True
    assert kinoflow(*arguments()).code == 3


def test_without_following_it_starts_and_leaves_and_can_be_followed_later(kfp: KfpServer, kinoflow: Submit) -> None:
    assert kinoflow(*arguments("--no-follow")).code == 0
    (run_id,) = kfp.held.runs
    assert run_id not in kfp.held.asked
    shown = kinoflow("follow", run_id, "--poll", "0.05")
    assert shown.code == 0 and "train stage3: succeeded" in shown.out
    assert kinoflow("follow", "nothing").err.count("nothing not found") == 1


def test_a_recurring_run(kfp: KfpServer, kinoflow: Submit) -> None:
    shown = kinoflow(*arguments("--recurring", "0 3 * * 1"))
    assert shown.code == 0, shown
    (made,) = kfp.held.recurring.values()
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (made["mode"], made["max_concurrency"], made["no_catchup"]) == ("ENABLE", "1", True)
    told = made["runtime_config"]["parameters"]
    assert (told["root"], told["run_name"]) == ("s3://kinoflow/runs/smoke-{run}", "smoke-{run}")
    shown_again = kinoflow(*arguments("--recurring", "@daily", "--root", "s3://kinoflow/mine"))
    assert shown_again.code == 1 and "write {run} in it" in shown_again.err
    assert not kfp.held.runs and f"/#/recurringrun/details/{made['recurring_run_id']}" in shown.out


@pytest.mark.parametrize("path", ["/runs", "/recurringruns", "/pipelines", "/upload_version", "/experiments"])
def test_a_lost_answer_makes_nothing_twice(kfp: KfpServer, kinoflow: Submit, path: str) -> None:
    kfp.behaviour.forget_answer_to = path
    shown = kinoflow(*arguments("--no-follow", *(["--recurring", "@daily"] if path == "/recurringruns" else [])))
    assert shown.code == 0 and not kfp.behaviour.forget_answer_to, shown
    held = kfp.held
    assert len(held.pipelines) == len(held.versions) == len(held.experiments) == 1
    assert len(held.runs) + len(held.recurring) == 1


def test_a_short_outage_is_ridden_out(kfp: KfpServer, kinoflow: Submit, caplog: pytest.LogCaptureFixture) -> None:
    stopper = threading.Thread(target=_outage, args=(kfp, 0.7))
    stopper.start()
    shown = kinoflow(*arguments("--patience", "30"))
    stopper.join()
    assert shown.code == 0, shown
    assert "answers again" in caplog.text


def _outage(kfp: KfpServer, seconds: float | None) -> None:
    deadline_s = time.monotonic() + 60
    while not any(count >= 2 for count in kfp.held.asked.values()) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    kfp.stop()
    if seconds is not None:
        time.sleep(seconds)
        kfp.start()


def test_a_server_gone_for_good_says_how_to_follow_again(kfp: KfpServer, kinoflow: Submit) -> None:
    stopper = threading.Thread(target=_outage, args=(kfp, None))
    stopper.start()
    shown = kinoflow(*arguments("--patience", "1"))
    stopper.join()
    (run_id,) = kfp.held.runs
    assert shown.code == 75
    assert "does not answer" in shown.out and f"kinoflow follow {run_id}" in shown.out
    kfp.start()
    assert kinoflow("follow", run_id, "--poll", "0.05").code == 0


def test_a_token_that_expires_on_the_way_says_how_to_follow_again(
    kfp: KfpServer, kinoflow: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp.behaviour.token = TOKEN
    monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
    changer = threading.Thread(target=_expiry, args=(kfp,))
    changer.start()
    shown = kinoflow(*arguments("--poll", "0.3"))
    changer.join()
    (run_id,) = kfp.held.runs
    assert shown.code == 1
    assert "refused or has expired (401)" in shown.err and f"kinoflow follow {run_id}" in shown.err


def _expiry(kfp: KfpServer) -> None:
    deadline_s = time.monotonic() + 60
    while not any(kfp.held.asked.values()) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    kfp.behaviour.token = "another"


def test_ctrl_c_ends_the_following_and_not_the_run(kfp: KfpServer) -> None:
    command = [sys.executable, "-m", "pipelines.cli", *arguments("--poll", "30")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 60
    while not kfp.held.asked and time.monotonic() < deadline_s:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    (run_id,) = kfp.held.runs
    assert process.returncode == 130, err
    assert f"goes on without being followed; follow it again with `kinoflow follow {run_id}`" in out
    assert not any(":terminate" in path for _, path, _ in kfp.requests)


def test_slow_answers_are_waited_for(kfp: KfpServer, kinoflow: Submit) -> None:
    kfp.behaviour.delay_s = 0.15
    assert kinoflow(*arguments("--no-follow")).code == 0


def test_where_several_are_served_the_namespace_is_sent(kfp: KfpServer, kinoflow: Submit) -> None:
    kfp.behaviour.namespace = "team-a"
    shown = kinoflow(*arguments("--no-follow"))
    assert shown.code == 1 and "--namespace or KF_PIPELINES_NAMESPACE" in shown.err
    shown = kinoflow(*arguments("--no-follow", "--namespace", "team-b"))
    assert shown.code == 1 and "may not do that in the namespace team-b (403" in shown.err
    assert kinoflow(*arguments("--no-follow", "--namespace", "team-a")).code == 0
    assert [one["namespace"] for one in kfp.held.pipelines.values()] == ["team-a"]


def test_the_token_opens_the_door_and_is_shown_nowhere(
    kfp: KfpServer, kinoflow: Submit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kfp.behaviour.token = TOKEN
    caplog.set_level("DEBUG")
    shown = [kinoflow(*arguments("--no-follow"))]
    assert "it wants a token (401); set KF_PIPELINES_TOKEN" in shown[0].err
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "wrong-token-0815")
    shown += [kinoflow(*arguments("--no-follow"))]
    assert "refused or has expired (401)" in shown[1].err
    monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
    shown += [kinoflow(*arguments())]
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
    monkeypatch.delenv("KF_PIPELINES_TOKEN")
    shown += [kinoflow(*arguments("--token-file", str(tmp_path / "token")))]
    assert [one.code for one in shown] == [1, 1, 0, 0]
    told = "".join(one.out + one.err for one in shown) + caplog.text + "".join(kfp.bodies)
    assert TOKEN not in told and "wrong-token" not in told


Change = Callable[[KfpServer], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda kfp: setattr(kfp.behaviour, "version_1_only", True), ["no v2beta1 API", "Kubeflow Pipelines 2"]),
        (lambda kfp: setattr(kfp.behaviour, "page_of_html", True), ["not one of Kubeflow Pipelines' v2beta1 API"]),
        (lambda kfp: setattr(kfp.behaviour, "login_page", True), ["it wants a token (302)"]),
        (lambda kfp: setattr(kfp.behaviour, "refuse_uploads", "unknown field\nretryPolicyX"),
         ["Could not upload the pipeline to", "answered 400: unknown field retryPolicyX"]),
        (lambda kfp: setattr(kfp.behaviour, "refuse", Refusal(403, "RBAC: access denied")),
         ["may not do that (403: RBAC: access denied)"]),
        (lambda kfp: setattr(kfp.behaviour, "refuse", Refusal(503, "")), ["it answers 503"]),
        (lambda kfp: kfp.stop(), ["does not answer", "port-forward"]),
    ],
)  # fmt: skip
def test_what_the_server_refuses_is_one_sentence(
    kfp: KfpServer, kinoflow: Submit, change: Change, words: list[str]
) -> None:
    change(kfp)
    shown = kinoflow(*arguments("--patience", "0.5"))
    assert shown.code == 1 and not kfp.held.runs
    assert shown.err.splitlines()[-1].startswith("error: ") and "Traceback" not in shown.err
    for word in words:
        assert word in shown.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"KF_PIPELINES_ENDPOINT": ""}, ["No Kubeflow Pipelines is named", "KF_PIPELINES_ENDPOINT"]),
        ({"--host": "ftp://x"}, ["'ftp://x' is no address"]),
        ({"--videos": ""}, ["No videos are named"]),
        ({"--videos": "clips"}, ["--videos clips: pods do not see this machine"]),
        ({"--base": "/data"}, ["--root /data/runs/smoke", "s3:// URI"]),
        ({"--name": "A/B"}, ["run name 'A/B' cannot be used"]),
        ({"--image": ""}, ["No image is named"]),
        ({"--recurring": "monday"}, ["no cron expression"]),
        ({"--set": "seed"}, ["key=value"]),
        ({"--token-file": "/nowhere/token"}, ["Could not read the token from /nowhere/token"]),
    ],
)
def test_mistakes_are_found_before_anything_is_asked(
    kfp: KfpServer, kinoflow: Submit, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], words: list[str]
) -> None:
    more: list[str] = []
    for key, value in given.items():
        if key.startswith("--"):
            more += [key, value]
        else:
            monkeypatch.setenv(key, value)
    shown = kinoflow(*arguments(*more))
    assert shown.code == 1 and not kfp.requests, shown
    for word in words:
        assert word in shown.err


def test_cron_expressions_get_the_seconds_that_kubeflow_wants() -> None:
    assert kubeflow_cron("0 3 * * 1") == "0 0 3 * * 1"
    assert kubeflow_cron("30 0 3 * * MON-FRI") == "30 0 3 * * MON-FRI"
    assert kubeflow_cron("@every 6h") == "@every 6h"
    for wrong in ("", "* *", "0 3 * * $", "@soon"):
        with pytest.raises(KubeflowError, match="no cron expression"):
            kubeflow_cron(wrong)


def test_the_server_of_these_tests_is_strict(kfp: KfpServer) -> None:
    import json
    import urllib.error
    import urllib.request

    def post(path: str, body: dict[str, Any]) -> int:
        request = urllib.request.Request(f"{kfp.url}/apis/v2beta1{path}", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        try:
            return int(urllib.request.urlopen(request).status)
        except urllib.error.HTTPError as error:
            return error.code

    assert post("/experiments", {"display_name": "x"}) == 200
    assert post("/experiments", {"display_name": "y", "colour": "red"}) == 400
    assert post("/experiments", {"display_name": 7}) == 400
    assert post("/runs", {"display_name": "x", "experiment_id": "none"}) == 404
    assert post("/recurringruns", {"mode": "PERHAPS"}) == 400
