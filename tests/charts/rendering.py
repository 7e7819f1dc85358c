"""The charts, their example values, what Helm makes of them, and the schemas that judges it."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import importlib_resources
import jsonschema
import kubernetes_validate
import referencing
import yaml
from helm_python import _native

CHARTS_FOLDER = Path(__file__).parents[2] / "charts"
CHARTS = tuple(sorted(file.parent.name for file in CHARTS_FOLDER.glob("*/Chart.yaml")))
CASES = tuple(
    (chart, file.name.removesuffix("-values.yaml"))
    for chart in CHARTS
    for file in sorted((CHARTS_FOLDER / chart / "ci").glob("*-values.yaml"))
)
VERSIONS = tuple(
    version.removesuffix(".0")
    for version in sorted({v.removesuffix("-local") for v in kubernetes_validate.utils.all_versions()})
    if tuple(map(int, version.split(".")[:2])) >= (1, 31)
)
NAMESPACE = "team-or-platform"
SCHEMAS = Path(__file__).parent / "schemas"

Manifest = dict[str, Any]


def values_of(chart: str, case: str) -> Manifest:
    """The example values of one case."""
    text = (CHARTS_FOLDER / chart / "ci" / f"{case}-values.yaml").read_text()
    return yaml.safe_load(text) or {}


def render(chart: str, values: Manifest, version: str = "1.35", *, notes: bool = False) -> str:
    """All manifests as one YAML text; raises helm_python's error when values are refused."""
    options = {"name": "demo", "namespace": NAMESPACE, "kube_version": f"v{version}.0"}
    with helm_python.Chart.load(str(CHARTS_FOLDER / chart)) as loaded:
        loaded.validate_schema(values)
        answer = _native.call_string("helm_render", loaded._raw(), json.dumps(values), json.dumps(options))
    files = json.loads(answer)
    wanted = ".txt" if notes else ".yaml"
    return "\n---\n".join(text for path, text in sorted(files.items()) if path.endswith(wanted))


@functools.cache
def _rendered(chart: str, case: str, version: str) -> tuple[Manifest, ...]:
    text = render(chart, values_of(chart, case), version)
    return tuple(manifest for manifest in yaml.load_all(text, Loader=yaml.CSafeLoader) if manifest)


def manifests(chart: str, case: str, version: str = "1.35") -> list[Manifest]:
    """The objects of one case, free to be changed."""
    return copy.deepcopy(list(_rendered(chart, case, version)))


def find(objects: list[Manifest], kind: str, name: str) -> Manifest:
    """The one object of that kind and name."""
    (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def pod_of(manifest: Manifest) -> Manifest | None:
    """The pod an object starts, as {metadata, spec}; None when it starts none."""
    kind, spec = manifest["kind"], manifest.get("spec", {})
    if kind in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
        return spec["template"]
    if kind == "CronJob":
        return spec["jobTemplate"]["spec"]["template"]
    if kind == "TrainingRuntime":
        return spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    return None


def containers_of(pod: Manifest) -> Iterator[Manifest]:
    """Every container of a pod, initial ones first."""
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]


def faults_of(manifest: Manifest, version: str) -> list[str]:
    """What the schema of that Kubernetes version, or of the object's own definition, has against it."""
    validator = _validator(manifest["apiVersion"], manifest["kind"], version)
    faults = [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(manifest)]
    if manifest["kind"] == "TrainingRuntime":
        pod = {"apiVersion": "v1", "kind": "Pod", **pod_of(manifest)}
        faults += faults_of(pod, version)
    return faults


@functools.cache
def _validator(api_version: str, kind: str, version: str) -> jsonschema.Draft202012Validator:
    if kind == "TrainingRuntime":
        return jsonschema.Draft202012Validator(json.loads((SCHEMAS / "TrainingRuntime.json").read_text()))
    other = _others().get(f"{api_version}/{kind}")
    if other:
        return jsonschema.Draft202012Validator(other)
    group, _, number = api_version.rpartition("/")
    name = "-".join([kind.lower(), *([group.partition(".")[0]] if group else []), f"{number}.json"])
    schema, definitions = _kubernetes(version, name), _kubernetes(version, "_definitions.json")
    registry = referencing.Resource.from_contents(definitions) @ referencing.Registry()
    registry = referencing.Resource.from_contents(schema) @ registry
    return jsonschema.Draft202012Validator(schema, registry=registry)


@functools.cache
def _kubernetes(version: str, name: str) -> Any:
    folder = importlib_resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    return json.loads((folder / name).read_text())


@functools.cache
def _others() -> dict[str, Manifest]:
    """Schemas of kinds that are no part of Kubernetes, every object in them closed."""
    text = yaml.safe_load((SCHEMAS / "others.yaml").read_text())
    definitions = {name: _closed(schema) for name, schema in text.pop("definitions").items()}
    head = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    return {
        name: {**_closed({**schema, "properties": {**schema["properties"], **head}}), "definitions": definitions}
        for name, schema in text.items()
    }


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    if not isinstance(node.get("properties"), dict):
        return {key: _closed(value) for key, value in node.items()}
    properties = {name: _closed(value) for name, value in node["properties"].items()}
    rest = {key: value for key, value in node.items() if key != "properties"}
    return {**rest, "type": "object", "additionalProperties": False, "properties": properties}
