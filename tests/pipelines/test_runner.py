"""Whole runs of the compiled graph with the real stages: failing, interrupted, finished, and run again."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from components import manifest, store, tables
from components.errors import KinoflowError
from components.packed import PackedClips
from components.progress import append_event
from pipelines.config import load_run_config
from pipelines.local.runner import RunError, RunRequest, run, run_folder
from pipelines.local.services import Ports
from pipelines.local.summary import Summary
from tests.conftest import S3Server
from tests.pipelines.conftest import Finished, tracked_datasets


@pytest.fixture
def project(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose services are named by the environment."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quiet() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def test_a_failing_stage_is_one_sentence_and_names_the_log(project: Path) -> None:
    (project / "videos").mkdir()
    (project / "videos" / "broken.mp4").write_bytes(b"no video at all")
    request = RunRequest(load_run_config("smoke"), str(project / "videos"), "broken", str(project / "out"))
    with pytest.raises(RunError) as caught:
        run(request, project / ".kinoflow", Ports(), quiet())
    sentence = str(caught.value)
    log = project / "runs" / "broken" / "pipeline.log"
    assert f"(log: {log})" in sentence
    assert "\n" not in sentence
    assert "1 of 1" in sentence or "max_failed_share" in sentence, sentence
    assert "Inner task failed" in log.read_text(encoding="utf-8", errors="replace")
    assert not (project / "runs" / "broken" / "summary.json").exists()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running_when_a_run_is_ended(kind: signal.Signals, project: Path) -> None:
    (project / "videos").mkdir()
    (project / "videos" / "broken.mp4").write_bytes(b"no video at all")
    command = [sys.executable, "-m", "pipelines.cli", "run", "--preset", "smoke", "--name", "ended",
               "--videos", "videos", "--base", str(project / "out")]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    events = project / "runs" / "ended" / "events.jsonl"
    assert _wait_until(lambda: bool(_processes_with(str(events))), 60)
    process.send_signal(kind)
    _, told = process.communicate(timeout=60)
    assert (b"the same command goes on where the run 'ended' stopped" in told) == (kind != signal.SIGKILL), told
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[kind]
    assert _wait_until(lambda: not _processes_with(str(events)), 20), _processes_with(str(events))


def _processes_with(path: str) -> list[str]:
    """Living processes that report their progress to this file."""
    found = []
    for process in psutil.process_iter():
        try:
            if path in process.environ().values() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:150])
        except psutil.Error:
            continue
    return found


def _wait_until(condition: Any, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.1)
    return True


def test_one_run_of_a_name_at_a_time(project: Path) -> None:
    request = RunRequest(load_run_config("smoke"), str(project), "twice", str(project / "out"))
    folder = run_folder(project / ".kinoflow", "twice")
    folder.mkdir(parents=True)
    code = "import fcntl,sys,time; f=open(sys.argv[1],'a'); fcntl.flock(f,2); print(1,flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(folder / ".lock")], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(KinoflowError, match="'twice' is already going on"):
        run(request, project / ".kinoflow", Ports(), quiet())
    other.kill()
    other.communicate()


# --- one whole run, looked at from all sides --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestFinishedRun:
    """Everything that is true of a finished run."""

    def test_summary_counts_everything_once(self, finished: Finished) -> None:
        summary = Summary.model_validate_json((finished.folder / "summary.json").read_text(encoding="utf-8"))
        assert (summary.name, summary.preset) == ("tiny", "smoke")
        assert summary.sources.total == 12 == summary.sources.ingested + summary.sources.rejected
        assert summary.clips.total == summary.clips.kept + summary.clips.dropped
        assert sum(summary.clips.reasons.values()) == summary.clips.dropped
        assert [(stage.name, stage.steps) for stage in summary.stages] == [("stage1", 3), ("stage2", 2), ("stage3", 2)]
        assert all(stage.loss_first is not None and stage.seconds > 0 for stage in summary.stages)
        checkpoints = [stage.checkpoint for stage in summary.stages]
        assert [stage.parent_checkpoint for stage in summary.stages] == [None, *checkpoints[:-1]]
        assert summary.mlflow.experiment == "kinoflow"
        assert summary.mlflow.parent_run_id
        run_ids = [stage.mlflow_run_id for stage in summary.stages if stage.mlflow_run_id]
        assert run_ids and len(set(run_ids)) == len(run_ids)

    def test_every_task_received_what_was_intended(self, finished: Finished) -> None:
        received = {e["node"]: e["inputs"] for e in finished.events() if e.get("state") == "running"}
        root, objects = finished.request.root, finished.request.arguments()["objects"]
        configs = finished.config.component_configs()
        shots = [f"shots-{part:05d}-of-00002" for part in range(2)]
        assert list(received) == ["ingest", *shots, *list(configs)[1:]] == finished.config.nodes()
        for name, inputs in received.items():
            assert inputs.pop("config") == configs["curate" if name in shots else name].model_dump_json()
            assert inputs.pop("out") == (f"{root}/shots/{name}" if name in shots else f"{root}/{name}")
        digest = manifest.load(f"{root}/curate").digest
        tracking = {"experiment": "kinoflow", "run_name": "tiny", "source_version": "", "dataset_digest": digest}
        steps = [f"{root}/stage{n}/step-{steps:08d}" for n, steps in ((1, 3), (2, 2), (3, 2))]
        assert received == {
            "ingest": {"source": finished.request.source, "objects": objects},
            **{name: {"videos": f"{root}/ingest", "objects": objects, "part": part, "parts": 2}
               for part, name in enumerate(shots)},
            "curate": {"videos": f"{root}/ingest", "objects": objects, "shots": f"{root}/shots", "parts": 2},
            "bucket": {"clips": f"{root}/curate", "objects": objects,
                       "latents": finished.request.arguments()["latents"]},
            "stage1": {**tracking, "data": f"{root}/bucket", "parent": None},
            "stage2": {**tracking, "data": f"{root}/bucket", "parent": steps[0]},
            "stage3": {**tracking, "data": f"{root}/bucket", "parent": steps[1]},
            "evaluate": {**tracking, "data": f"{root}/bucket", "checkpoint": steps[2], "clips": f"{root}/curate",
                         "objects": objects},
        }  # fmt: skip

    def test_artifacts_are_small_manifests(self, finished: Finished) -> None:
        artifacts = [p for p in (finished.folder / "kfp").rglob("manifest") if p.is_file()]
        assert len(artifacts) == 9
        for path in artifacts:
            told = json.loads(path.read_text(encoding="utf-8"))
            assert told["digest"] == manifest.load(told["uri"]).digest

    def test_the_dataset_has_one_digest_in_kubeflow_mlflow_and_checkpoints(self, finished: Finished) -> None:
        root = finished.request.root
        digest = manifest.load(f"{root}/curate").digest
        (told,) = [p for p in (finished.folder / "kfp").rglob("dataset_digest") if p.is_file()]
        assert told.read_text(encoding="utf-8") == digest
        arguments = {e["node"]: e["inputs"] for e in finished.events() if e.get("state") == "running"}
        summary = Summary.model_validate_json((finished.folder / "summary.json").read_text(encoding="utf-8"))
        for stage in summary.stages:
            assert arguments[stage.name]["dataset_digest"] == digest
            assert manifest.load(stage.checkpoint).inputs["clips"] == digest
        database = finished.project / ".kinoflow" / "mlflow" / "mlflow.db"
        tasks = {*(f"train {stage.name}" for stage in summary.stages), "evaluate"}
        assert tracked_datasets(database) == dict.fromkeys(tasks, (digest, [digest[:36]]))
        command = [sys.executable, "-m", "pipelines.cli", "digest", summary.stages[-1].checkpoint]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{digest}\n"

    def test_its_clips_are_packed_by_its_name(self, finished: Finished) -> None:
        command = [sys.executable, "-m", "pipelines.cli", "pack", "tiny", "--out", "packed", "--short-side", "48"]
        shown = subprocess.run(
            command, cwd=finished.project, env=finished.environment, capture_output=True, text=True, check=True
        ).stdout
        kept = Summary.model_validate_json((finished.folder / "summary.json").read_text()).clips.kept
        assert f"packed: {kept} of {kept} clips" in shown
        assert f"dataset {manifest.load(f'{finished.request.root}/curate').digest}\n" in shown
        assert len(PackedClips(str(finished.project / "packed"))) == kept

    def test_pages_are_shown_by_kubeflow_and_mlflow(self, finished: Finished) -> None:
        pages = sorted(path.read_bytes() for path in (finished.folder / "kfp").rglob("report") if path.is_file())
        published = [
            store.read_bytes(f"{finished.request.root}/{stage}/report.html") for stage in ("curate", "evaluate")
        ]
        assert pages == sorted(published)
        attached = [path.read_bytes() for path in (finished.project / ".kinoflow").rglob("curation/report.html")]
        assert attached == [published[0]] == [(finished.folder / "curation/report.html").read_bytes()]

    def test_outputs_lie_where_a_person_looks(self, finished: Finished) -> None:
        for name in ("report.html", "contact_sheet.png", "metrics.json", "pipeline.log", "pipeline.yaml"):
            assert (finished.folder / name).stat().st_size > 0
        assert list((finished.folder / "samples").iterdir())
        log = (finished.folder / "pipeline.log").read_text(encoding="utf-8", errors="replace")
        assert (
            json.loads((finished.project / ".kinoflow" / "credentials.json").read_text())["AWS_SECRET_ACCESS_KEY"]
            not in log
        )

    def test_every_output_is_whole(self, finished: Finished) -> None:
        command = [sys.executable, "-m", "pipelines.cli", "verify", finished.request.root]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert int(shown.split()[0]) >= 7

    def test_its_name_is_enough_to_generate(self, finished: Finished) -> None:
        command = [sys.executable, "-m", "pipelines.cli", "generate", "a red circle", "a square", "--checkpoint",
                   "tiny", "--out", "made", "--num-inference-steps", "2", "--height", "32", "--width=32"]  # fmt: skip
        shown = subprocess.run(
            command, cwd=finished.project, env=finished.environment, capture_output=True, text=True, check=True
        ).stdout
        paths = [finished.project / line for line in shown.splitlines()]
        assert [path.suffix for path in paths] == [".mp4", ".mp4"]
        assert all(path.stat().st_size > 0 for path in paths)

    def test_clips_of_the_table_are_those_of_the_summary(self, finished: Finished, tmp_path: Path) -> None:
        manifest.fetch(f"{finished.request.root}/curate", tmp_path, ["clips.parquet"])
        clips = tables.read(tmp_path / "clips.parquet", tables.CLIPS)
        kept = Summary.model_validate_json((finished.folder / "summary.json").read_text()).clips.kept
        assert int((clips["outcome"] == "kept").sum()) == kept

    def test_running_again_changes_nothing(
        self, finished: Finished, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = finished.digests()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished.project}/again.db")
        summary = run(finished.request, finished.project / ".kinoflow", Ports(), quiet())
        assert finished.digests() == before
        assert len(summary.stages) == 3


def test_the_first_error_of_a_run_is_what_is_told(tmp_path: Path) -> None:
    from pipelines.local.display import EventFile, RunDisplay

    path = tmp_path / "events.jsonl"
    for sentence in ("the cause.", "what followed."):
        append_event(str(path), {"error": sentence})
    display = RunDisplay([], quiet())
    for event in EventFile(path).new_events():
        display.handle(event)
    assert display.errors[0] == "the cause."
