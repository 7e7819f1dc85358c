"""The command line: what it prints, and the one sentence that ends each kind of mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import app, main
from tests.conftest import S3Server


def kinoflow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Run one command in this process; returns exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["kinoflow", *arguments])
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project as the current folder."""
    (tmp_path / ".kinoflow").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_has_help_with_an_example() -> None:
    assert len(app.registered_commands) >= 10
    groups = [group.typer_instance for group in app.registered_groups if group.typer_instance]
    for command in (*app.registered_commands, *(command for group in groups for command in group.registered_commands)):
        text = command.callback.__doc__ if command.callback else None
        assert text and "`kinoflow " in text, command.name


def test_help_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['kinoflow', '--help']\n"
        "from pipelines.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'kfp', 'mlflow', 'boto3', 'polars', 'dvc'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "generate" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--preset", "huge"], ["no preset 'huge'", "smoke"]),
        (["run", "--videos", "nowhere"], ["nowhere", "does not exist"]),
        (["run", "--videos", "empty"], ["empty", "no "]),
        (["run", "--videos", "clip.mp4"], ["clip.mp4", "give a folder"]),
        (["run", "--name", "../up"], ["../up", "cannot be used"]),
        (["run", "--set", "stages.0.steps=0"], ["stages.0.steps", "greater than 0"]),
        (["run", "--set", "evaluate.prompt=x"], ["evaluate.prompt", "unknown key"]),
        (["run", "--set", "steps"], ["--set steps", "key=value"]),
        (["run", "--set", "seed=["], ["--set seed=[", "YAML"]),
        (["run", "--preset", "opensora-v1.1"], ["for a cluster", "kinoflow plan opensora-v1.1"]),
        (["run", "--preset", "mine.yaml"], ["mine", "name some with --videos"]),
        (["data", "--preset", "mine.yaml"], ["mine", "no videos of its own"]),
        (["plan", "huge"], ["no preset 'huge'"]),
        (["plan", "demo", "--gpu", "voodoo2"], ["no GPU 'voodoo2'", "h200"]),
        (["plan", "opensora-v1.1", "--gpu", "h200", "--memory", "1"], ["do not fit with a single sample"]),
        (["weights", "import", "nowhere", "work/w"], ["nowhere does not exist"]),
        (["weights", "export", "empty", "out"], ["Nothing is published at empty"]),
        (["verify", "empty"], ["Nothing is published at or below empty"]),
        (["checkpoint", "empty"], ["No training stage has ended at empty"]),
        (["generate", "a circle", "--checkpoint", "never"], ["no finished run 'never'"]),
        (["exec", "--", "no-such-program"], ["Could not run 'no-such-program'"]),
    ],
    ids=lambda value: " ".join(value)[:40] if value and isinstance(value, list) else None,
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], words: list[str], project: Path, s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (project / "empty").mkdir()
    (project / "clip.mp4").write_bytes(b"x")
    own = {"preset": "mine", "description": "no data", "stages": [
        {"name": f"s{n}", "steps": 1, "buckets": {"buckets": {"144p": {1: [1.0, 1]}}}} for n in range(3)]}  # fmt: skip
    (project / "mine.yaml").write_text(json.dumps(own), encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    code, _, err = kinoflow(monkeypatch, capsys, *arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err
    assert not (project / "runs").exists()


def test_an_unreachable_store_is_one_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _one_image(project / "pictures")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("KINOFLOW_STORE_PATIENCE_S", "0")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    code, _, err = kinoflow(monkeypatch, capsys, "run", "--preset", "smoke", "--videos", "pictures", "--name", "x")
    assert code == 1
    assert "object store at http://127.0.0.1:9 (AWS_ENDPOINT_URL_S3) does not answer" in err


def test_wrong_credentials_are_one_sentence(
    project: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _one_image(project / "pictures")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    code, _, err = kinoflow(monkeypatch, capsys, "run", "--preset", "smoke", "--videos", "pictures", "--name", "x")
    assert code == 1
    assert "refused the credentials" in err


def test_a_full_disk_is_one_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _one_image(project / "pictures")
    usage = shutil.disk_usage(project)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5 << 20))
    code, _, err = kinoflow(monkeypatch, capsys, "run", "--preset", "smoke", "--videos", "pictures")
    assert code == 1
    assert "Only 5 MiB are free below" in err


def test_plan_shows_every_bucket_and_the_totals(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = kinoflow(monkeypatch, capsys, "plan", "opensora-v1.1")
    assert code == 0
    assert [f"stage{n}" in out for n in (1, 2, 3)] == [True] * 3
    assert "107000 steps" in out
    assert out.count("barrier") == 2 + 3 + 2
    row = next(line.split() for line in out.splitlines() if line.split()[:2] == ["240p", "16"])
    assert row[2:6] == ["320x320", "0.3", "2", "6400"]  # 16 frames of 40x40 latents in 2x2 patches


def test_plan_writes_a_preset_that_loads(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "demo", "--gpu", "l40s", "--step-seconds", "0.5", "--write", "planned.yaml"]
    code, out, _ = kinoflow(monkeypatch, capsys, *arguments)
    assert code == 0 and "kinoflow run --preset planned.yaml" in out
    code, out, _ = kinoflow(monkeypatch, capsys, "plan", "planned.yaml", "--gpu", "l40s", "--step-seconds", "0.5")
    assert code == 0 and "demo-planned" in out


def test_compile_and_config_write_what_they_say(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = kinoflow(monkeypatch, capsys, "compile", "-p", "smoke", "-o", "here/graph.yml", "--set", "seed=5")
    assert (code, out) == (0, "wrote here/graph.yml\n")
    assert '"seed":5' in (project / "here" / "graph.yml").read_text(encoding="utf-8")
    code, out, _ = kinoflow(monkeypatch, capsys, "config", "smoke", "--out", "c")
    assert code == 0
    assert sorted(out.split()) == sorted(str(path.relative_to(project)) for path in (project / "c").iterdir())


def test_exec_passes_the_services_and_the_exit_code(
    project: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    script = (
        "import os, pathlib; pathlib.Path('seen').write_text(os.environ['AWS_ENDPOINT_URL_S3']); raise SystemExit(3)"
    )
    code, _, _ = kinoflow(monkeypatch, capsys, "exec", "--", sys.executable, "-c", script)
    assert code == 3
    assert (project / "seen").read_text(encoding="utf-8") == s3_server.endpoint


def test_data_is_made_once(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"demo_data": {"num_videos": 1, "num_images": 2, "seed": 3, "folder": "world"}}
    smoke = json.loads(_smoke_with(changes))
    (project / "tiny.yaml").write_text(json.dumps(smoke), encoding="utf-8")
    assert kinoflow(monkeypatch, capsys, "data", "-p", "tiny.yaml") == (0, f"wrote {project}/world\n", "")
    assert kinoflow(monkeypatch, capsys, "data", "-p", "tiny.yaml")[1] == f"already there: {project}/world\n"
    assert {path.name for path in (project / "world").iterdir()} == {"videos", "truth.json", "prompts.txt"}


def _smoke_with(changes: dict[str, object]) -> str:
    from pipelines.config import load_run_config

    return load_run_config("smoke", changes).model_dump_json()


def _one_image(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")


def test_gc_shows_what_it_removes_and_verify_names_what_is_half_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from components import manifest
    from components.store import BytesContent

    for step in (10, 20, 30):
        manifest.publish_files(
            f"work/stage1/step-{step:08d}", "checkpoint", {"model.safetensors": BytesContent(bytes(1000))}, config={},
            inputs={}, facts={"step": step}, annotations={},
        )  # fmt: skip
    code, out, _ = kinoflow(monkeypatch, capsys, "gc", "work", "--keep-last", "1", "--dry-run")
    assert code == 0 and "would be removed" in out and "superseded checkpoint" in out and "step-00000010" in out
    assert "kept work/stage1/step-00000030: among the newest 1" in out
    assert len(list((project / "work/stage1").iterdir())) == 3
    code, out, _ = kinoflow(monkeypatch, capsys, "gc", "work", "--keep-last", "1")
    assert code == 0 and "would" not in out
    assert [path.name for path in (project / "work/stage1").iterdir()] == ["step-00000030"]
    assert kinoflow(monkeypatch, capsys, "verify", "work")[:2] == (0, "1 outputs are whole\n")
    manifest.announce("work/bucket", "dataset", ["index.parquet"])
    (project / "work/stage1/step-00000030/manifest.json").write_text("{]")
    code, _, err = kinoflow(monkeypatch, capsys, "verify", "work")
    assert code == 1 and "manifest.json is damaged" in err and "work/bucket is half-written" in err
    (project / "mine").mkdir()
    code, _, err = kinoflow(monkeypatch, capsys, "gc", "mine")
    assert code == 1 and "error: mine is no root of this program's outputs" in err
