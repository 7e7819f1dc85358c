"""The cluster's path without a cluster: registration, the containers' own commands, the TrainJob's own processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import manifest, store
from components.config import TrackingConfig
from components.layout import REPORT
from components.train_command import train_command
from pipelines.cluster import Cluster, Placement
from pipelines.config import RunConfig, load_run_config
from pipelines.text_to_video import compile_pipeline
from pipelines.trainjob import render
from tests.charts.rendering import find, values_of
from tests.charts.rendering import render as render_chart
from tests.components.test_train import write_dataset
from tests.components.test_train_launch import ranks
from tests.conftest import S3Server
from tests.kfp_driver import Driver
from tests.kfp_server import KfpServer
from tests.pipelines.conftest import TINY
from tests.s3_process import SECRET_KEY, free_port

REPO = Path(__file__).resolve().parents[2]
IMAGE = "registry.example.org/kinoflow@sha256:" + "0" * 64
PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def test_the_registration_job_registers_the_pipeline(tmp_path: Path) -> None:
    kfp = KfpServer()
    kfp.start()
    kfp.behaviour.token = "projected-token"
    (tmp_path / "token").write_text("projected-token", encoding="utf-8")
    try:
        values = values_of("platform", "registered")
        values["registration"] |= {"host": f"http://127.0.0.1:{kfp.port}", "preset": "smoke"}
        kfp.behaviour.namespace = values["registration"].get("namespace", "")
        objects = [one for one in yaml.safe_load_all(render_chart("platform", values)) if one]
        (container,) = find(objects, "Job", "kinoflow-registration")["spec"]["template"]["spec"]["containers"]
        told = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        told |= {"KF_PIPELINES_SA_TOKEN_PATH": str(tmp_path / "token"), "HOME": str(tmp_path)}
        assert container["command"][0] == "kinoflow"
        command = [sys.executable, "-m", "pipelines.cli", *container["command"][1:], *container["args"]]
        environment = {"PATH": PROGRAMS, "PYTHONPATH": str(REPO), **told}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        kfp.stop()
    (version,) = kfp.held.versions.values()
    assert version["display_name"].startswith("smoke-")
    assert "projected-token" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    from components.shapes.generate import generate
    from components.shapes.plan import ShapesConfig

    folder = tmp_path_factory.mktemp("rehearsal")
    generate(folder, ShapesConfig(seed=0, num_videos=6, num_images=6))
    changes = {**TINY, "demo_data.folder": str(folder), "evaluate.measure_shapes": False}
    return load_run_config("smoke", changes)


def drive(config: RunConfig, folder: Path, source: str, bucket: str, **inputs: str) -> Driver:
    """Compile for a cluster and run every container's own command as its pod would."""
    compile_pipeline(config, folder / "graph.yaml", IMAGE, Cluster())
    graph = next(yaml.safe_load_all((folder / "graph.yaml").read_text(encoding="utf-8")))
    environment = {**os.environ, "PATH": PROGRAMS, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1",
                   "KINOFLOW_RUN": "run-4711", "_KFP_RUNTIME": "true"}  # fmt: skip
    told = {"source": source, "root": f"{bucket}/runs/{{run}}", "objects": f"{bucket}/objects",
            "latents": f"{bucket}/latents", **inputs}  # fmt: skip
    driver = Driver(graph, told, folder / "tasks", environment)
    driver.run()
    return driver


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_containers_own_commands_make_a_checkpoint_in_the_graphs_order(
    tiny: RunConfig, s3_server: S3Server, mlflow_server: str, tmp_path: Path
) -> None:
    assert tiny.demo_data
    bucket, source = s3_server.bucket(), str(Path(tiny.demo_data.folder) / "videos")
    driver = drive(tiny, tmp_path / "first", source, bucket, run_name="rehearsal")
    assert set(driver.codes.values()) == {0}, next(
        driver.logs[key][-3000:] for key, code in driver.codes.items() if code
    )
    root = f"{bucket}/runs/run-4711"
    assert store.read_bytes(f"{root}/outcome.json")
    outcome = json.loads(store.read_bytes(f"{root}/outcome.json"))
    assert outcome["state"] == "SUCCEEDED" and set(outcome["results"]) >= {"ingest", "curate", "bucket", "evaluate"}
    checkpoint = json.loads(store.read_bytes(f"{root}/stage3/{REPORT}"))["checkpoint"]
    assert not manifest.verify(checkpoint)
    assert driver.metadata["train-3"]["metrics"]["metadata"]["steps"] == 2
    page = Path(driver.metadata["evaluate"]["report"]["uri"]).read_text(encoding="utf-8")
    assert "<video" in page and "data:video/mp4" in page
    everything = json.dumps([driver.logs, driver.results, driver.metadata, driver.graph])
    assert SECRET_KEY not in everything

    again = drive(tiny, tmp_path / "second", source, bucket, root=f"{bucket}/runs/second", run_name="rehearsal-2",
                  start_at="stage3", stop_after="stage3", from_run=root)  # fmt: skip
    assert set(again.codes.values()) == {0}, next(again.logs[key][-3000:] for key, code in again.codes.items() if code)
    repeated = json.loads(store.read_bytes(f"{bucket}/runs/second/stage3/{REPORT}"))
    first = json.loads(store.read_bytes(f"{root}/stage3/{REPORT}"))
    assert repeated["model_sha256"] == first["model_sha256"]
    written = {item.key.split("/")[0] for item in store.list_objects(f"{bucket}/runs/second")}
    assert written == {"stage3", "outcome.json"}


@pytest.mark.slow
def test_a_mistake_ends_the_run_at_its_first_task_and_is_written_down(
    tiny: RunConfig, s3_server: S3Server, mlflow_server: str, tmp_path: Path
) -> None:
    bucket = s3_server.bucket()
    driver = drive(tiny, tmp_path, "nowhere", bucket, overrides="{sede: 7}", run_name="mistaken")
    assert driver.codes == {"configure": 1, "outcome": 0}
    assert "error: preset tiny" in driver.logs["configure"] or "sede: unknown key" in driver.logs["configure"]
    outcome = json.loads(store.read_bytes(f"{bucket}/runs/run-4711/outcome.json"))
    assert (outcome["state"], outcome["message"], outcome["results"]) == ("FAILED", "it broke", {})
    assert _status("mistaken", mlflow_server) == ("FAILED", "FAILED")


def _status(run_name: str, uri: str) -> tuple[str, str]:
    """Status of the pipeline's run in MLflow, and the outcome it is tagged with."""
    code = (
        "import json, sys\nfrom mlflow import MlflowClient\nclient = MlflowClient(sys.argv[1])\n"
        "ids = [one.experiment_id for one in client.search_experiments()]\n"
        "(run,) = client.search_runs(ids, f\"attributes.run_name = '{sys.argv[2]}'\")\n"
        "print(json.dumps([run.info.status, run.data.tags['kinoflow.outcome']]))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, uri, run_name]
    status, tag = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return status, tag


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "each"), [(2, 1), (2, 2)])
def test_the_processes_of_a_trainjob_train_together_over_gloo(nodes: int, each: int, tmp_path: Path) -> None:
    """Each node runs the manifest's own command; Kubeflow Trainer sets torchrun's variables."""
    data = write_dataset(str(tmp_path / "bucket"), batches=24)
    config = ranks(each)
    arguments = train_command(config, TrackingConfig(), data=data, parent=None, out=str(tmp_path / "out"))
    cluster = Cluster.model_validate({"train": {"nodes": nodes, "runtime": "kinoflow-cpu"}})
    job = render(Placement(image=IMAGE, cluster=cluster), arguments, name="j", namespace="n", labels={}, processes=each)
    trainer: dict[str, Any] = job["spec"]["trainer"]
    command = [*trainer["command"], *(one.replace("$$(", "$(") for one in trainer["args"])]
    port, processes = free_port(), []
    for node in range(trainer["numNodes"]):
        injected = {"NNODES": nodes, "NPROC_PER_NODE": trainer["numProcPerNode"], "NODE_RANK": node,
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment |= {"PATH": PROGRAMS, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        environment |= {f"PET_{name}": str(value) for name, value in injected.items()}
        processes.append(
            subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        )
    told = [process.communicate(timeout=280) for process in processes]
    assert [process.returncode for process in processes] == [0] * nodes, told
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["steps"] == 6 and not manifest.verify(report["checkpoint"])
