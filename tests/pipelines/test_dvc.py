"""The second front end: `dvc.yaml` names what the stages take, reruns only what changed, and shares data over S3."""

import hashlib
import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import manifest
from components.errors import KinoflowError
from components.lineage.seen import chain, touched_by
from components.packed import PackedClips
from pipelines.config import load_run_config, preset_names
from pipelines.dvc import compare_with_version, final_checkpoint, write_configs
from pipelines.ops import STAGES
from tests.components.pack.conftest import make_world
from tests.conftest import S3Server
from tests.pipelines.conftest import Finished, tracked_datasets

ROOT = Path(__file__).resolve().parents[2]
DVC = str(Path(sys.executable).with_name("dvc"))
OURS = {"config", "takedowns"}
"""Stages that are no component."""
TRAINED = {"stage1", "stage2", "stage3"}


@pytest.fixture(scope="module")
def stages() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return loaded


def component_of(stage: str) -> str:
    return "train" if stage in TRAINED else stage


def command_of(stage: dict[str, Any]) -> dict[str, str]:
    """Options of a stage's command line."""
    words = shlex.split(stage["cmd"].replace("${setup}", ""))
    named = [word.removeprefix("--") for word in words if word.startswith("--")]
    return {name: words[words.index(f"--{name}") + 1] for name in named}


def outs_of(stage: dict[str, Any]) -> set[str]:
    return {out if isinstance(out, str) else next(iter(out)) for out in stage["outs"]}


def test_there_is_one_stage_per_node_of_the_graph(stages: dict[str, dict[str, Any]]) -> None:
    assert [name for name in stages if name != "takedowns"] == ["config", *load_run_config("demo").component_configs()]
    assert {component_of(name) for name in stages} - OURS == {stage.__name__ for stage in STAGES}


def test_every_preset_has_the_stage_names_that_dvc_knows() -> None:
    for name in preset_names():
        assert {stage.name for stage in load_run_config(name).stages} == TRAINED, name


def test_commands_take_the_options_of_the_components(stages: dict[str, dict[str, Any]]) -> None:
    for name, stage in stages.items():
        if name in OURS:
            continue
        component = importlib.import_module(f"components.{component_of(name)}")
        module = (
            importlib.import_module(f"{component.__name__}.__main__") if hasattr(component, "__path__") else component
        )
        wanted = set(inspect.signature(module.main).parameters)
        assert set(command_of(stage)) == wanted - ({"parent"} if name == "stage1" else set()), name


def test_what_a_command_reads_is_what_dvc_watches(stages: dict[str, dict[str, Any]]) -> None:
    """But not the tracking settings: they change no result."""
    for name, stage in stages.items():
        if name in OURS:
            continue
        options = command_of(stage)
        shared = {"ingest": "objects", "bucket": "latents"}
        made = {options.pop("out")} | ({options[shared[name]]} if name in shared else set())
        assert outs_of(stage) == made
        assert all(next(iter(out.values())) == {"persist": True} for out in stage["outs"])
        options.pop("tracking", None)
        read = {re.sub(r"\$\(kinoflow checkpoint (.*)\)", r"\1", value) for value in options.values()} - made
        read |= {"work/latents"} if "data" in options else set()  # the bucket output says where in it
        read |= {"work/takedowns.json"} if name == "curate" else set()  # curation finds them beside the objects
        assert read == set(stage["deps"]) - {"components", "model"}, name


def test_training_is_chained(stages: dict[str, dict[str, Any]]) -> None:
    assert "parent" not in command_of(stages["stage1"])
    assert command_of(stages["stage2"])["parent"] == "$(kinoflow checkpoint work/stage1)"
    assert command_of(stages["stage3"])["parent"] == "$(kinoflow checkpoint work/stage2)"
    assert command_of(stages["evaluate"])["checkpoint"] == "$(kinoflow checkpoint work/stage3)"


def test_configs_are_those_of_the_graph(stages: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    config = load_run_config("smoke")
    paths = write_configs(config, tmp_path)
    assert {f"work/config/{path.name}" for path in paths} == outs_of(stages["config"])
    for name, part in config.component_configs().items():
        assert type(part).model_validate_json((tmp_path / f"{name}.json").read_text(encoding="utf-8")) == part


@pytest.mark.parametrize(
    ("changes", "rewritten"),
    [
        ({"evaluate.sampling.guidance_scale": 1.5}, {"evaluate"}),
        ({"curate.rules.min_motion": 0.5}, {"curate"}),
        ({"stages.1.optimizer.learning_rate": 1e-4}, {"stage2"}),
        ({"stages.2.steps": 11}, {"stage3", "bucket"}),
    ],
)
def test_a_setting_rewrites_only_what_reads_it(changes: dict[str, Any], rewritten: set[str], tmp_path: Path) -> None:
    before = {path.stem: path.read_bytes() for path in write_configs(load_run_config("smoke"), tmp_path)}
    after = {path.stem: path.read_bytes() for path in write_configs(load_run_config("smoke", changes), tmp_path)}
    assert {name for name in before if before[name] != after[name]} == rewritten


def test_the_final_checkpoint_is_in_the_report(tmp_path: Path) -> None:
    with pytest.raises(KinoflowError, match="No training stage has ended"):
        final_checkpoint(str(tmp_path))
    (tmp_path / "report.json").write_text('{"checkpoint": "work/stage1/step-00000010"}', encoding="utf-8")
    assert final_checkpoint(str(tmp_path)) == "work/stage1/step-00000010"
    (tmp_path / "report.json").write_text("{", encoding="utf-8")
    with pytest.raises(KinoflowError, match="damaged"):
        final_checkpoint(str(tmp_path))


# --- with DVC itself --------------------------------------------------------------------------------------------


def dvc(project: Path, *arguments: str, environment: dict[str, str] | None = None) -> str:
    unread = {"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"}  # DVC wants real files there
    passed = {name: value for name, value in (environment or os.environ).items() if name not in unread}
    result = subprocess.run([DVC, *arguments], cwd=project, env=passed, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone of what DVC needs, under git."""
    folder = tmp_path / "clone"
    for name in ("components", "model", "pipelines"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def test_sources_and_a_packed_dataset_travel_over_an_s3_remote(
    project: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    dvc(project, "remote", "modify", "--local", "store", "url", f"{s3_server.bucket()}/dvc")
    videos = project / "data" / "videos"
    videos.mkdir(parents=True)
    (videos / "a.mp4").write_bytes(b"video a" * 1000)
    (videos / "a.txt").write_text("a caption\n", encoding="utf-8")
    world = make_world(str(project / "work"), tmp_path)
    command = [sys.executable, "-m", "pipelines.cli", "pack", "work/curate", "--out", "packed", "--workers", "1"]
    shown = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout
    digest = manifest.load(world.clips).digest
    assert f"dataset {digest}\n" in shown
    dvc(project, "add", "data", "packed")
    dvc(project, "push", "data.dvc", "packed.dvc")
    for gone in ("data", "packed", ".dvc/cache"):
        shutil.rmtree(project / gone)
    dvc(project, "pull", "data.dvc", "packed.dvc")
    assert (videos / "a.mp4").read_bytes() == b"video a" * 1000
    assert manifest.verify(str(project / "packed")) == []
    assert manifest.load(str(project / "packed")).dataset_digest == digest
    clips = PackedClips(str(project / "packed"))
    assert len(clips) == 6 and len(list(clips.read(0).frames())) == 24
    # packing the same clips again is the same version
    (project / "packed" / manifest.NAME).unlink()
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    assert json.loads(dvc(project, "status", "data.dvc", "packed.dvc", "--json")) == {}


def test_made_data_are_compared_with_their_version(project: Path) -> None:
    (project / "data").mkdir()
    (project / "data" / "a.txt").write_text("one\n", encoding="utf-8")
    dvc(project, "add", "data")
    recorded = (project / "data.dvc").read_bytes()
    shutil.rmtree(project / ".dvc" / "cache")
    assert compare_with_version(project / "data.dvc") == f"{project}/data is the version in data.dvc"
    assert json.loads(dvc(project, "status", "data.dvc", "--json")) == {}
    (project / "data" / "a.txt").write_text("two\n", encoding="utf-8")
    assert (
        compare_with_version(project / "data.dvc") == f"{project}/data is another version than data.dvc says (modified)"
    )
    assert (project / "data.dvc").read_bytes() == recorded
    (project / "broken.dvc").write_text("outs: 7", encoding="utf-8")
    with pytest.raises(KinoflowError, match=r"`dvc status --json broken\.dvc` failed"):
        compare_with_version(project / "broken.dvc")


@pytest.mark.slow
def test_made_data_have_the_version_that_is_recorded(project: Path) -> None:
    shutil.copyfile(ROOT / "data.dvc", project / "data.dvc")
    subprocess.run([sys.executable, "-m", "pipelines.cli", "data", "--preset", "demo"], cwd=project, check=True)
    assert json.loads(dvc(project, "status", "data.dvc", "--json")) == {}


def check_dataset_digest(project: Path, digest: str) -> None:
    """Under DVC the dataset has the digest that it has in the graph: in DVC's own files, checkpoints and MLflow."""
    metrics = json.loads(dvc(project, "metrics", "show", "--json"))[""]["data"]["work/dataset.json"]["data"]
    assert metrics["dataset_digest"] == digest and metrics["train_clips"] > 0
    lock = yaml.safe_load((project / "dvc.lock").read_text(encoding="utf-8"))["stages"]["bucket"]
    recorded = {out["path"]: out["md5"] for out in lock["outs"]}
    content = (project / "work" / "dataset.json").read_bytes()
    assert recorded["work/dataset.json"] == hashlib.md5(content, usedforsecurity=False).hexdigest()
    for stage in TRAINED:
        checkpoint = manifest.load(final_checkpoint(str(project / "work" / stage)).replace("work/", f"{project}/work/"))
        assert checkpoint.inputs["clips"] == digest
    tasks = {*(f"train {stage}" for stage in TRAINED), "evaluate"}
    assert tracked_datasets(project / "runs.db") == dict.fromkeys(tasks, (digest, [digest[:36]]))


def ran(told: str) -> set[str]:
    """Stages that `dvc repro` ran; it looks for takedowns every time."""
    return set(re.findall(r"Running stage '(.*)'", told)) - {"takedowns"}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_dvc_and_the_graph_make_the_same_bits_and_an_evaluation_setting_reruns_evaluation_only(
    finished: Finished, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.project / "data", project / "data")
    preset = project / "pipelines" / "presets" / "tiny.yaml"
    preset.write_text(finished.config.model_dump_json(), encoding="utf-8")
    (project / "params.yaml").write_text("preset: tiny\n", encoding="utf-8")
    dvc(project, "add", "data")
    # `kinoflow` must read the clone's presets
    environment = {
        **finished.environment,
        "MLFLOW_TRACKING_URI": f"sqlite:///{project}/runs.db",
        "PYTHONPATH": str(project),
        "PATH": f"{Path(DVC).parent}:{os.environ['PATH']}",
    }
    dvc(project, "repro", environment=environment)
    # a comparison shows one particular run: its speed and its addresses
    own = ("shots/", "comparison")
    theirs = {name: digest for name, digest in finished.digests().items() if not name.startswith(own)}
    mine = {name: manifest.load(str(project / "work" / name)).digest for name in theirs}
    assert mine == theirs
    check_dataset_digest(project, theirs["curate"])
    config = load_run_config("smoke", {**finished.config.model_dump(mode="json"), "evaluate.seed": 7})
    preset.write_text(config.model_dump_json(), encoding="utf-8")
    told = dvc(project, "repro", environment=environment)
    assert ran(told) == {"config", "evaluate"}
    # after a takedown everything that is made of clips is made again, without them
    monkeypatch.chdir(project)
    clip_id = str(next(chain(final_checkpoint("work/stage3"))).clip_ids[0])
    command = [sys.executable, "-m", "pipelines.cli"]
    takedown = ["takedown", "--clip", clip_id, "--reason", "asked by its owner", "--root", "work"]
    subprocess.run([*command, *takedown], env=environment, check=True, capture_output=True)
    assert ran(dvc(project, "repro", environment=environment)) == {"curate", "bucket", *TRAINED, "evaluate"}
    last = final_checkpoint("work/stage3")
    assert touched_by(last) == (0, set())
    assert all(len(stage.clip_ids) and clip_id not in set(stage.clip_ids) for stage in chain(last))
    listed = [*command, "takedowns", "work/objects"]
    shown = subprocess.run(listed, env=environment, check=True, capture_output=True, text=True).stdout
    assert shown.endswith(f": clip {clip_id} (asked by its owner)\n")
