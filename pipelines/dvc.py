"""What DVC needs besides the components: config files, the checkpoint to go on from, the version of made data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from components import layout, store
from components.config import TrackingConfig
from components.errors import KinoflowError
from pipelines.config import RunConfig


def write_configs(config: RunConfig, folder: Path) -> list[Path]:
    """Write one JSON file per component, and `tracking.json`; the same text that the Kubeflow graph carries.

    Training stages are named by position (`stage1.json` …), as in `dvc.yaml`. A file whose content stays the same
    keeps its bytes, so a change of one setting reruns only what reads it.
    """
    order = {stage.name: f"stage{number}" for number, stage in enumerate(config.stages, start=1)}
    texts = {order.get(name, name): part.model_dump_json(indent=1) for name, part in config.component_configs().items()}
    texts["tracking"] = TrackingConfig(run_name=f"dvc-{config.preset}").model_dump_json(indent=1)
    paths = []
    for name, text in texts.items():
        paths.append(folder / f"{name}.json")
        store.write_bytes(str(paths[-1]), f"{text}\n".encode())
    return paths


def compare_with_version(tracked: Path) -> str:
    """Say whether data are the version in their `.dvc` file; if they are, put them into DVC's cache.

    Data that were made here, not pulled, are missing from the cache: DVC would call that a change.

    Raises:
        KinoflowError: DVC cannot tell, for example outside a git repository.
    """
    folder = tracked.with_suffix("")
    changes = json.loads(_dvc(tracked.parent, "status", "--json", tracked.name)).get(tracked.name, [])
    found = {state for change in changes for state in change.get("changed outs", {}).values()}
    if found - {"not in cache"}:
        return f"{folder} is another version than {tracked.name} says ({', '.join(sorted(found))})"
    if found:
        _dvc(tracked.parent, "commit", "--force", tracked.name)
    return f"{folder} is the version in {tracked.name}"


def _dvc(project: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["it said nothing"]
        raise KinoflowError(f"`dvc {' '.join(arguments)}` failed: {lines[0].removeprefix('ERROR: ')}")
    return result.stdout


def final_checkpoint(stage: str) -> str:
    """URI of the checkpoint with which a training stage ended.

    Raises:
        KinoflowError: the stage has not ended.
    """
    report = store.join(stage, layout.REPORT)
    try:
        return str(json.loads(store.read_bytes(report))["checkpoint"])
    except store.ObjectMissing as error:
        raise KinoflowError(f"No training stage has ended at {stage} (no report.json); run it first.") from error
    except (ValueError, KeyError) as error:
        raise KinoflowError(f"{report} is damaged; run the stage again.") from error
