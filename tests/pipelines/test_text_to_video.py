"""The compiled graph: deterministic, as intended node by node, and made without torch or a cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.errors import KinoflowError
from pipelines.cluster import CREDENTIALS, Cluster
from pipelines.config import RunConfig, load_run_config
from pipelines.text_to_video import compile_pipeline

GOLDEN = Path(__file__).with_name("text_to_video.golden.yaml")
IMAGE = "registry.example/kinoflow-python@sha256:" + "0" * 64


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_run_config("smoke", {"description": "golden"})


@pytest.fixture(scope="module")
def compiled(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "text_to_video.yaml"
    compile_pipeline(config, path, IMAGE, Cluster(gpus=1))
    return path


def tasks(compiled: Path) -> dict[str, dict[str, Any]]:
    graph = next(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    found: dict[str, dict[str, Any]] = graph["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    return found


def parameters(task: dict[str, Any]) -> dict[str, str]:
    """Each parameter of a task as a short text: a constant, an input of the graph, or another task's result."""
    short = {}
    for name, source in task["inputs"]["parameters"].items():
        if name.startswith("pipelinechannel--"):
            continue
        kind, value = next(iter(source.items()))
        if kind == "taskOutputParameter":
            key = value["outputParameterKey"]
            short[name] = f"task {value['producerTask']}" + (f".{key}" if value["producerTask"] == "configure" else "")
        else:
            text = value.removeprefix("pipelinechannel--") if isinstance(value, str) else ""
            short[name] = f"input {text}" if text else value["constant"]
    return short


def test_the_graph_is_the_golden_one(compiled: Path) -> None:
    """Everything but the settings, which have a test of their own. KINOFLOW_UPDATE_GOLDEN=1 writes it anew."""
    graph, platform = yaml.safe_load_all(compiled.read_text(encoding="utf-8"))
    task = graph["components"]["comp-exit-handler-1"]["dag"]["tasks"]["configure"]
    task["inputs"]["parameters"]["compiled"]["runtimeValue"]["constant"] = "(the preset as JSON)"
    text = yaml.safe_dump_all([graph, platform], sort_keys=True, width=100)
    if os.environ.get("KINOFLOW_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_compiling_twice_gives_the_same_bytes(config: RunConfig, compiled: Path, tmp_path: Path) -> None:
    compile_pipeline(config, tmp_path / "again.yaml", IMAGE, Cluster(gpus=1))
    assert (tmp_path / "again.yaml").read_bytes() == compiled.read_bytes()


def test_seven_nodes_each_with_its_own_config(config: RunConfig, compiled: Path) -> None:
    found = tasks(compiled)
    names = {"ingest": "ingest", "curate": "curate", "bucket": "bucket", "train": "stage1", "train-2": "stage2",
             "train-3": "stage3", "evaluate": "evaluate"}  # fmt: skip
    assert set(found) == {"configure", *names}
    told = parameters(found["configure"])
    assert RunConfig.model_validate_json(told.pop("compiled")) == config
    assert told == {name: f"input {name}" for name in ("preset", "overrides", "start_at", "stop_after", "from_run")}
    for task, part in names.items():
        received = parameters(found[task])
        assert received["config"] == f"task configure.{part.replace('stage', 'stage_')}"
        assert received["out"].endswith("/" + part)


def test_whatever_happens_the_outcome_is_written_down(compiled: Path) -> None:
    graph = next(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    last = graph["root"]["dag"]["tasks"]["outcome"]
    assert last["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert last["dependentTasks"] == ["exit-handler-1"]


def test_a_person_need_only_name_the_source(compiled: Path) -> None:
    graph = next(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    asked = graph["root"]["inputDefinitions"]["parameters"]
    assert [name for name, one in asked.items() if not one.get("isOptional")] == ["source"]
    assert all(one["description"] for one in asked.values())
    assert asked["preset"]["defaultValue"] == "smoke"


def test_results_flow_along_the_chain(compiled: Path) -> None:
    found = {name: parameters(task) for name, task in tasks(compiled).items()}
    assert found["ingest"]["source"] == "input source"
    assert found["curate"]["videos"] == "task ingest"
    assert found["bucket"]["clips"] == "task curate"
    assert "parent" not in found["train"]
    assert [found[f"train-{n}"]["parent"] for n in (2, 3)] == ["task train", "task train-2"]
    assert {found[name]["data"] for name in ("train", "train-2", "train-3", "evaluate")} == {"task bucket"}
    assert (found["evaluate"]["checkpoint"], found["evaluate"]["clips"]) == ("task train-3", "task curate")
    for name in ("train", "train-2", "train-3", "evaluate"):
        for given in ("experiment", "run_name", "source_version"):
            assert found[name][given] == f"input {given}"
        assert found[name]["dataset_digest"] == "task bucket"


def test_many_files_are_curated_by_several_tasks_and_a_merge(tmp_path: Path) -> None:
    config = load_run_config("smoke", {"curate_parts": 3})
    compile_pipeline(config, tmp_path / "parts.yaml", IMAGE, Cluster(gpus=1))
    found = tasks(tmp_path / "parts.yaml")
    parts = ["curate-part", "curate-part-2", "curate-part-3"]
    assert set(found) == {"configure", "ingest", *parts, "merge", "bucket", "train", "train-2", "train-3", "evaluate"}
    root = "{{$.inputs.parameters['pipelinechannel--root']}}"
    for number, name in enumerate(parts):
        received = parameters(found[name])
        assert (received["videos"], received["part"], received["parts"]) == ("task ingest", number, 3)
        assert received["out"] == f"{root}/shots/shots-{number:05d}-of-00003"
        assert received["config"] == "task configure.curate"
    received = parameters(found["merge"])
    assert (received["shots"], received["parts"], received["out"]) == (f"{root}/shots", 3, f"{root}/curate")
    assert set(found["merge"]["dependentTasks"]) == {"configure", "ingest", *parts}
    for name in ("bucket", "evaluate"):
        assert parameters(found[name])["clips"] == "task merge"
    assert config.nodes()[:6] == [
        "ingest",
        *(f"shots-{number:05d}-of-00003" for number in range(3)),
        "curate",
        "bucket",
    ]
    graph, platform = yaml.safe_load_all((tmp_path / "parts.yaml").read_text(encoding="utf-8"))
    assert len(platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]) == 12
    executors = graph["deploymentSpec"]["executors"]
    assert all("accelerator" not in executors[f"exec-{name}"]["container"].get("resources", {}) for name in parts)


def test_pods_find_their_namespace_and_only_computing_ones_take_gpus(compiled: Path) -> None:
    graph, platform = yaml.safe_load_all(compiled.read_text(encoding="utf-8"))
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert len(pods) == 9
    for pod in pods.values():
        assert [item["configMapName"] for item in pod["configMapAsEnv"]] == ["kinoflow-addresses"]
        secret = pod["secretAsEnv"][0]
        assert {key["secretKey"]: key["envVar"] for key in secret["keyToEnv"]} == CREDENTIALS
    executors = graph["deploymentSpec"]["executors"]
    with_gpu = {name for name, e in executors.items() if "accelerator" in e["container"].get("resources", {})}
    assert with_gpu == {"exec-bucket", "exec-train", "exec-train-2", "exec-train-3", "exec-evaluate"}


def test_nothing_is_cached_and_whole_numbers_stay_whole(compiled: Path) -> None:
    found = tasks(compiled)
    assert not any(task["cachingOptions"].get("enableCache", False) for task in found.values())
    settings = json.loads(parameters(found["configure"])["compiled"])
    assert all(not isinstance(value, float) for value in (settings["seed"], settings["stages"][0]["steps"]))


def test_no_address_or_credential_is_compiled_in(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, f"http://secret-{name}")
    compile_pipeline(load_run_config("smoke", {"description": "golden"}), tmp_path / "p.yaml", IMAGE, Cluster(gpus=1))
    assert (tmp_path / "p.yaml").read_bytes() == compiled.read_bytes()


def test_compiling_needs_neither_torch_nor_a_cluster(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'diffusers', 'av', 'cv2', 'mlflow', 'dvc'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from pipelines.config import load_run_config\n"
        "from pipelines.text_to_video import compile_pipeline\n"
        "compile_pipeline(load_run_config('opensora-v1.1'), pathlib.Path(sys.argv[1]))\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KUBE", "KF_"))}
    environment = {**clean, "KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path)}
    path = tmp_path / "deep" / "p.yaml"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment, cwd=Path.cwd())
    shots = {"curate-part", *(f"curate-part-{number}" for number in range(2, 17))}
    assert set(tasks(path)) == {
        "configure",
        "ingest",
        *shots,
        "merge",
        "bucket",
        "train",
        "train-2",
        "train-3",
        "evaluate",
    }


def test_a_place_that_cannot_be_written_is_a_sentence(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(KinoflowError, match="Could not write"):
        compile_pipeline(config, tmp_path / "file" / "p.yaml")
