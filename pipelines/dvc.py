"""What the stages in `dvc.yaml` need besides the components: config files and the checkpoint to go on from."""

from __future__ import annotations

import json
from pathlib import Path

from components import store
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


def final_checkpoint(stage: str) -> str:
    """URI of the checkpoint with which a training stage ended.

    Raises:
        KinoflowError: the stage has not ended.
    """
    report = store.join(stage, "report.json")
    try:
        return str(json.loads(store.read_bytes(report))["checkpoint"])
    except store.ObjectMissing as error:
        raise KinoflowError(f"No training stage has ended at {stage} (no report.json); run it first.") from error
    except (ValueError, KeyError) as error:
        raise KinoflowError(f"{report} is damaged; run the stage again.") from error
