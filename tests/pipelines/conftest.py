"""One whole run, made once and looked at from several sides."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components import manifest, store
from pipelines.config import RunConfig, load_run_config
from pipelines.local.runner import RunRequest

TINY = {
    "num_threads": 1,
    "curate_parts": 2,
    "demo_data": {"num_videos": 6, "num_images": 6, "seed": 0, "folder": "data"},
    "autoencoder.steps": 40,
    "stages.0.steps": 3,
    "stages.1.steps": 2,
    "stages.2.steps": 2,
    "evaluate.sampling.num_inference_steps": 2,
}


PLANTED_SECRET = "planted-hub-token-0815"


@dataclass(frozen=True)
class Finished:
    """A project with one finished run named `tiny`."""

    project: Path
    config: RunConfig
    request: RunRequest
    environment: dict[str, str]

    @property
    def folder(self) -> Path:
        return self.project / "runs" / "tiny"

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]

    def digests(self) -> dict[str, str]:
        """Manifest digest of every output below the root."""
        keys = [item.key for item in store.list_objects(self.request.root) if item.key.endswith(manifest.NAME)]
        prefixes = [key.rsplit("/", 1)[0] for key in keys]
        return {prefix: manifest.load(store.join(self.request.root, prefix)).digest for prefix in prefixes}


def tracked_datasets(database: Path) -> dict[str, tuple[str, list[str]]]:
    """Of each task that MLflow knows to have read a dataset, the tag with its digest and the digests of its inputs."""
    code = (
        "import json, sys\n"
        "from mlflow import MlflowClient\n"
        "client = MlflowClient(f'sqlite:///{sys.argv[1]}')\n"
        "experiments = [each.experiment_id for each in client.search_experiments()]\n"
        "print(json.dumps({run.data.tags['kinoflow.task']: [run.data.tags['kinoflow.dataset_digest'],\n"
        "                  [item.dataset.digest for item in run.inputs.dataset_inputs]]\n"
        "                  for run in client.search_runs(experiments)\n"
        "                  if 'kinoflow.dataset_digest' in run.data.tags}))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(database)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {task: (tag, digests) for task, (tag, digests) in json.loads(shown).items()}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run with embedded services, as a person starts it; outputs on local paths, so that they can be looked at."""
    project = tmp_path_factory.mktemp("finished")
    (project / ".kinoflow").mkdir()
    config = load_run_config("smoke", TINY)
    (project / "tiny.yaml").write_text(config.model_dump_json(), encoding="utf-8")
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "MLFLOW_", "KINOFLOW_"))}
    environment["HF_TOKEN"] = PLANTED_SECRET
    command = [sys.executable, "-m", "pipelines.cli", "run", "-p", "tiny.yaml", "--name", "tiny", "--base",
               str(project / "out")]  # fmt: skip
    subprocess.run(command, cwd=project, env=environment, check=True)
    request = RunRequest(config, str(project / "data" / "videos"), "tiny", str(project / "out"))
    return Finished(project, config, request, environment)
