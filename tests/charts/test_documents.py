"""Schemas are closed and described; READMEs are what values.yaml says; the package holds what it should."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import helm_python
import pytest
import yaml

from tests.charts.rendering import CHARTS, CHARTS_FOLDER


def load_writer() -> ModuleType:
    """charts/document.py, which is a script beside the charts and no part of a package."""
    spec = importlib.util.spec_from_file_location("charts_document", CHARTS_FOLDER / "document.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    return load_writer()


@pytest.mark.parametrize("chart", CHARTS)
def test_written_files_are_up_to_date(chart: str, writer: ModuleType) -> None:
    for path, text in writer.pages(CHARTS_FOLDER / chart).items():
        assert path.read_text() == text, f"{path.name} is out of date: run `make charts-docs`."


def test_a_value_without_words_is_refused(writer: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"values.yaml, line 3: store.port has no"):
        list(writer.documented("store:\n  # -- Words\n  port: 1\n".replace("  # -- Words\n", "  # no mark\n")))


def objects_in(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object schema with its place."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield path, node
        for key, value in node.items():
            yield from objects_in(value, f"{path}/{key}")


@pytest.mark.parametrize("chart", CHARTS)
def test_every_object_of_the_schema_is_closed_and_every_value_described(chart: str) -> None:
    schema = json.loads((CHARTS_FOLDER / chart / "values.schema.json").read_text())
    for path, node in objects_in(schema):
        closed = node.get("additionalProperties") is False or node.get("maxProperties") == 0
        typed_map = isinstance(node.get("additionalProperties"), dict)
        assert closed or typed_map, path
        for name, child in node.get("properties", {}).items():
            leaf = child.get("type") != "object" and "definitions" not in path
            assert not leaf or child.get("description"), f"{path}/{name}"


@pytest.mark.parametrize("chart", CHARTS)
def test_every_default_is_required_or_optional_in_the_schema_and_nothing_is_only_there(chart: str) -> None:
    schema = json.loads((CHARTS_FOLDER / chart / "values.schema.json").read_text())
    values = yaml.safe_load((CHARTS_FOLDER / chart / "values.yaml").read_text())

    def compare(node: dict[str, Any], defaults: dict[str, Any], path: str) -> None:
        assert set(node["properties"]) - {"global"} == set(defaults), path
        for name, child in node["properties"].items():
            if "properties" in child:
                compare(child, defaults[name], f"{path}.{name}")

    compare(schema, values, chart)


def test_pods_are_secured_by_the_same_words_in_every_chart() -> None:
    texts = {(CHARTS_FOLDER / chart / "templates" / "_security.tpl").read_text() for chart in CHARTS}
    assert len(texts) == 1


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_is_packaged_and_fetches_nothing(chart: str, tmp_path: Path) -> None:
    assert "dependencies" not in yaml.safe_load((CHARTS_FOLDER / chart / "Chart.yaml").read_text())
    archive = Path(helm_python.package(str(CHARTS_FOLDER / chart), destination=str(tmp_path)))
    assert archive.name.startswith(f"{chart}-0.")
    assert archive.stat().st_size < 100_000
