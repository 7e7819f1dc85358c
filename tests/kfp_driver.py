"""What Kubeflow's driver and launcher do around a container: resolve its inputs, run its own command, read its outputs.

It takes a compiled graph of this project: constants, inputs of the graph, results of other tasks, one exit handler.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kfp_progress import order


@dataclass
class Driver:
    """Runs the tasks of one compiled graph, each in a process of its own.

    Attributes:
        graph: the first document of the compiled file.
        inputs: of the graph.
        folder: where task folders go.
        environment: of every process.
    """

    graph: dict[str, Any]
    inputs: dict[str, Any]
    folder: Path
    environment: dict[str, str]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)

    def run(self) -> str:
        """Run everything; SUCCEEDED or FAILED."""
        declared = self.graph["root"]["inputDefinitions"]["parameters"]
        values = {name: one.get("defaultValue") for name, one in declared.items()} | self.inputs
        handler = self.graph["components"]["comp-exit-handler-1"]["dag"]["tasks"]
        state = "SUCCEEDED"
        for key in order(handler):
            if not self._run_task(key, handler[key], {f"pipelinechannel--{n}": v for n, v in values.items()} | values):
                state = "FAILED"
                break
        self._run_task("outcome", self.graph["root"]["dag"]["tasks"]["outcome"], values, state)
        return state

    def _run_task(self, key: str, task: dict[str, Any], values: dict[str, Any], state: str = "") -> bool:
        component = self.graph["components"][task["componentRef"]["name"]]
        container = self.graph["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        given = self._parameters(task, values, state)
        folder = self.folder / key
        folder.mkdir(parents=True)
        outputs = component.get("outputDefinitions", {})
        told = {
            "inputs": {"parameterValues": given},
            "outputs": {
                "parameters": {name: {"outputFile": str(folder / name)} for name in outputs.get("parameters", {})},
                "artifacts": {
                    name: {"artifacts": [{"name": name, "uri": str(folder / name), "type": one["artifactType"],
                                          "metadata": {}}]}
                    for name, one in outputs.get("artifacts", {}).items()
                },
                "outputFile": str(folder / "executor_output.json"),
            },
        }  # fmt: skip
        command = [part.replace("{{$}}", json.dumps(told)) for part in [*container["command"], *container["args"]]]
        extra = {one["name"]: one["value"] for one in container.get("env", [])}
        done = subprocess.run(command, env={**self.environment, **extra}, capture_output=True, text=True, cwd=folder)
        self.codes[key], self.logs[key] = done.returncode, done.stdout + done.stderr
        (folder / "log").write_text(self.logs[key], encoding="utf-8")
        output = json.loads((folder / "executor_output.json").read_text()) if done.returncode == 0 else {}
        files = {
            name: (folder / name).read_text() for name in outputs.get("parameters", {}) if (folder / name).is_file()
        }
        self.results[key] = {**files, **output.get("parameterValues", {})}
        self.metadata[key] = {name: one["artifacts"][0] for name, one in output.get("artifacts", {}).items()}
        return done.returncode == 0

    def _parameters(self, task: dict[str, Any], values: dict[str, Any], state: str) -> dict[str, Any]:
        sources = task.get("inputs", {}).get("parameters", {})
        found: dict[str, Any] = {}
        for name, source in sources.items():
            if "taskOutputParameter" in source:
                one = source["taskOutputParameter"]
                found[name] = self.results[one["producerTask"]][one["outputParameterKey"]]
            elif "componentInputParameter" in source:
                found[name] = values[source["componentInputParameter"]]
            elif "taskFinalStatus" in source:
                found[name] = {"state": state, "pipelineTaskName": "exit-handler-1", "error": {"message": "it broke"}}
            else:
                found[name] = source["runtimeValue"]["constant"]
        return {name: _filled(value, found) for name, value in found.items()}


def _filled(value: Any, parameters: dict[str, Any]) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)  # as protobuf writes it
    if not isinstance(value, str):
        return value
    return re.sub(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}", lambda match: str(parameters[match[1]]), value)
