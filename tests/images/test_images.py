"""The images hold what their tasks need and nothing to attack with, and run the graph's commands in closed pods."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from components import layout, manifest, store
from components.images import revision, source_digest
from components.shapes.generate import generate
from components.shapes.plan import ShapesConfig
from pipelines.config import RunConfig, load_run_config
from pipelines.text_to_video import compile_pipeline
from tests.conftest import S3Server
from tests.images.conftest import ROOT, Built
from tests.s3_process import s3_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
TARGETS = ("data", "train", "submit")
TOOLS = r"(cc|gcc|g\+\+|c\+\+|clang|tcc|ld|as|make|nvcc|rustc|go|pip[0-9.]*|uv|uvx|easy_install.*|conda)"
IN_THE_IMAGES = {"ingest": "data", "curate": "data", "bucket": "train", "train": "train", "evaluate": "train"}


def test_make_prints_names_digests_and_sizes(built: Built) -> None:
    for target, line in zip(TARGETS, built.printed, strict=True):
        assert re.fullmatch(rf"localhost/kinoflow-{target}:test  sha256:[0-9a-f]{{64}}  [0-9]+ MB", line)


@pytest.mark.parametrize("target", TARGETS)
def test_labels_say_what_it_was_built_from(built: Built, target: str) -> None:
    labels = built.pods[target].config["Labels"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert labels["org.opencontainers.image.title"] == f"kinoflow-{target}"
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.revision"] == revision()
    assert labels["io.kinoflow.source-digest"] == source_digest()


@pytest.mark.parametrize("target", TARGETS)
def test_the_smoke_command_runs_as_nobody_on_a_closed_root(built: Built, target: str, tmp_path: Path) -> None:
    pod = built.pods[target]
    told = pod.run(pod.config["Cmd"], tmp_path)
    assert told.returncode == 0, told.stderr
    assert "kinoflow" in told.stdout
    assert ("torch" in told.stdout) is (target == "train")
    who = pod.run(["sh", "-c", "id -u; id -g; id -G; pwd; echo $HOME; touch /tmp/here && ls /tmp/here"], tmp_path)
    assert who.stdout.split() == ["65532", "65532", "65532", "/tmp", "/tmp", "/tmp/here"]
    for closed in ("/", "/opt/kinoflow", "/etc", "/usr/local", "/var/tmp", "/run/lock"):
        told = pod.run(["sh", "-c", f"touch {closed}/here"], tmp_path)
        assert told.returncode != 0, closed
        assert "Read-only file system" in told.stderr or "Permission denied" in told.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_inside_builds_installs_or_becomes_root(built: Built, target: str) -> None:
    root = built.pods[target].root
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "opt/kinoflow/bin"):
        found = [path.name for path in (root / folder).glob("*") if re.fullmatch(TOOLS, path.name)]
        assert not found, folder
    for package in ("pip", "ensurepip", "uv"):
        assert not [path for path in root.glob(f"**/python3*/**/{package}") if path.is_dir()], package
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in files if path.stat().st_mode & 0o6000]
    own = root / "opt"
    assert not [path for path in own.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    assert {path.lstat().st_uid for path in own.rglob("*")} == {0}


@pytest.mark.parametrize("target", TARGETS)
def test_packages_are_the_locks(packages: dict[str, dict[str, str]], target: str) -> None:
    locked = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    found = {name: version.partition("+")[0] for name, version in packages[target].items() if name != "kinoflow"}
    assert {name: version for name, version in found.items() if locked.get(name) != version} == {}


@pytest.mark.parametrize(("target", "extras"), [("data", "media text"), ("train", "media text train tracking cluster")])
def test_of_kubeflow_there_is_the_executor_alone(packages: dict[str, dict[str, str]], target: str, extras: str) -> None:
    """Everything in the image is required by our own extras, and kfp stands by itself."""
    needed = _required(extras.split())
    assert set(packages[target]) - needed == {"kfp"}
    assert ("torch" in packages[target]) is (target == "train")


def _required(extras: list[str]) -> set[str]:
    """Names of all packages that these extras of ours bring, by what is installed beside this test."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for one in extras for line in project["optional-dependencies"][one])]
    seen, queue = {"kinoflow"}, [Requirement(line) for line in lines]
    while queue:
        requirement = queue.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            further = [Requirement(line) for line in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue
        chosen = ("", *requirement.extras)
        queue += [one for one in further if not one.marker or any(one.marker.evaluate({"extra": e}) for e in chosen)]
    return seen


@pytest.fixture(scope="module")
def config() -> RunConfig:
    """The smoke preset, shortened to two steps."""
    changes = {
        "autoencoder.steps": 4, "stages.0.steps": 2, "evaluate.sampling.num_inference_steps": 1,
        "evaluate.timesteps": 1, "num_threads": 1,
    }  # fmt: skip
    return load_run_config("smoke", changes)


def test_the_graphs_commands_run_in_the_images(
    built: Built, config: RunConfig, s3_server: S3Server, mlflow_server: str, tmp_path: Path
) -> None:
    """Videos become a trained, evaluated checkpoint by nothing but what the compiled graph says."""
    compile_pipeline(config, tmp_path / "graph.yaml", "train")
    graph = next(yaml.safe_load_all((tmp_path / "graph.yaml").read_text()))
    bucket = s3_server.bucket()
    generate(tmp_path / "world", ShapesConfig(seed=0, num_videos=6, num_images=6))
    for path in (tmp_path / "world" / "videos").iterdir():
        store.upload(path, f"{bucket}/raw/{path.name}")
    tracking = {"experiment": "images", "run_name": "images", "source_version": "v1"}
    places = {"objects": f"{bucket}/objects", "latents": f"{bucket}/latents", "source": f"{bucket}/raw"}
    environment = {**s3_environment(s3_server.endpoint), "MLFLOW_TRACKING_URI": mlflow_server, "OMP_NUM_THREADS": "1"}
    outputs: dict[str, str] = {}
    inputs = {
        "ingest": {"config": config.ingest, **places},
        "curate": {"config": config.curate, "videos": "ingest", **places},
        "bucket": {"config": config.bucket_config(), "clips": "curate", **places},
        "train": {"config": config.train_config("stage1"), "data": "bucket", **tracking},
        "evaluate": {
            "config": config.evaluate_config(), "checkpoint": "train", "data": "bucket", "clips": "curate",
            **places, **tracking,
        },
    }  # fmt: skip
    digest = ""
    for stage, target in IN_THE_IMAGES.items():
        given = {name: outputs.get(str(value), value) for name, value in inputs[stage].items()}
        given |= {"config": given["config"].model_dump_json(), "out": f"{bucket}/run/{stage}", "dataset_digest": digest}
        scratch = tmp_path / stage
        command = _command(graph, stage, given)
        done = built.pods[target].run(command, scratch, environment)
        assert done.returncode == 0, done.stderr[-3000:]
        told = json.loads((scratch / "tmp" / "outputs" / "executor_output.json").read_text())["parameterValues"]
        outputs[stage] = told["Output"]
        digest = told.get("dataset_digest", digest)
        assert manifest.load(outputs[stage]).code_version == manifest.code_version()
        assert "warning" not in done.stderr.lower(), done.stderr
    assert store.exists(store.join(outputs["evaluate"], layout.PAGE))
    assert outputs["train"].endswith("step-00000002")


def _command(graph: dict[str, Any], stage: str, given: dict[str, Any]) -> list[str]:
    """The command of a task as Kubeflow's launcher starts it, with its executor input filled in."""
    component = graph["components"][f"comp-{stage}"]
    declared, made = component["inputDefinitions"]["parameters"], component["outputDefinitions"]
    artifacts = {
        name: {"artifacts": [{"name": name, "type": kind["artifactType"], "uri": f"s3://kubeflow/{stage}/{name}"}]}
        for name, kind in made["artifacts"].items()
    }
    executor_input = {
        "inputs": {"parameterValues": {name: given[name] for name in declared if name in given}},
        "outputs": {
            "parameters": {name: {"outputFile": f"/tmp/outputs/{name}"} for name in made["parameters"]},
            "artifacts": artifacts,
            "outputFile": "/tmp/outputs/executor_output.json",
        },
    }
    container = graph["deploymentSpec"]["executors"][f"exec-{stage}"]["container"]
    filled = [part.replace("{{$}}", json.dumps(executor_input)) for part in container["args"]]
    return [*container["command"], *filled]
