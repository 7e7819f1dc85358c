"""Write each chart's README.md from its values.yaml, and the same words into its values.schema.json.

`python charts/document.py` writes; `python charts/document.py --check` only says what would change and ends with 1.
A value's words are the `# --` comment above it; what the items of a list hold is described in the schema.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHARTS = Path(__file__).parent
MARK = re.compile(r"^\s*# -- (.+)$")


@dataclass(frozen=True)
class Value:
    """One documented key of values.yaml."""

    path: tuple[str, ...]
    default: Any
    words: str


def documented(text: str) -> Iterator[Value]:
    """The keys with a `# --` comment, in the file's order; raises ValueError for a leaf that has none."""
    lines = text.splitlines()

    def walk(node: yaml.MappingNode, path: tuple[str, ...]) -> Iterator[Value]:
        for key, child in node.value:
            here = (*path, key.value)
            words = MARK.match(lines[key.start_mark.line - 1]) if key.start_mark.line else None
            if words:
                yield Value(here, _plain(child), words[1])
            elif isinstance(child, yaml.MappingNode) and child.value and not child.flow_style:
                yield from walk(child, here)
            else:
                raise ValueError(
                    f"values.yaml, line {key.start_mark.line + 1}: {'.'.join(here)} has no `# --` comment."
                )

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("values.yaml is no mapping.")
    yield from walk(root, ())


def describe(schema: dict[str, Any], values: list[Value]) -> None:
    """Put every value's words into the schema; raises ValueError for a value the schema does not know."""
    for value in values:
        node = schema
        for name in value.path:
            if name not in node.get("properties", {}):
                raise ValueError(f"values.schema.json does not know {'.'.join(value.path)}.")
            node = node["properties"][name]
        node["description"] = value.words


def readme(folder: Path, schema: dict[str, Any], values: list[Value]) -> str:
    """The chart's page: what it is, how to install it, every value."""
    chart = yaml.safe_load((folder / "Chart.yaml").read_text())
    cases = [
        f"* `ci/{file.name}`: {file.read_text().splitlines()[0].removeprefix('# ')}"
        for file in sorted((folder / "ci").glob("*-values.yaml"))
    ]
    head = folder / "ABOUT.md"
    images = [f"* `{value.default}` (`{'.'.join(value.path)}`)" for value in values if _is_image(value)]
    parts = [
        f"# {chart['name']}",
        chart["description"],
        f"```sh\nhelm install {chart['name']} charts/{chart['name']} -n NAMESPACE --values my-values.yaml\n```",
        f"Kubernetes {chart['kubeVersion'].removeprefix('>=').removesuffix('.0-0')} or newer. "
        "A value that is unknown, of the wrong kind or in "
        "contradiction to another ends the installation with a sentence. Helm merges maps with the defaults: `null` "
        "removes a key of a default.",
        head.read_text().strip() if head.exists() else "",
        "## Examples, rendered and validated by the tests",
        "\n".join(cases),
        "## Images\n\nNothing else is fetched by an installation; mirror these for a cluster without the internet.",
        "\n".join(images) or "None of its own: those your values name.",
        "## Values",
        "\n".join(["| value | type | default | meaning |", "|---|---|---|---|", *_rows(schema, values)]),
        "*Written by `make charts-docs` from `values.yaml` and `values.schema.json`; edit those.*",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _is_image(value: Value) -> bool:
    return value.path[-1].lower().endswith("image") and bool(value.default)


def _rows(schema: dict[str, Any], values: list[Value]) -> Iterator[str]:
    for value in values:
        node = schema
        for name in value.path:
            node = node["properties"][name]
        default = json.dumps(value.default, ensure_ascii=False)
        items = _resolved(schema, node.get("items", {}))
        listed = items.get("type") == "object" and "properties" in items and "$ref" not in node
        shown = f"`{default}`" if len(default) < 100 else "see values.yaml"
        yield f"| `{'.'.join(value.path)}` | {_kind(schema, node)} | {shown} | {_cell(value.words)} |"
        if listed:
            yield from _item_rows(schema, items, ".".join(value.path) + "[]")


def _item_rows(schema: dict[str, Any], items: dict[str, Any], path: str) -> Iterator[str]:
    for name, node in items["properties"].items():
        needed = "required" if name in items.get("required", []) else "optional"
        yield f"| `{path}.{name}` | {_kind(schema, node)} | {needed} | {_cell(node.get('description', ''))} |"
        if "properties" in node:
            yield from _item_rows(schema, node, f"{path}.{name}")


def _kind(schema: dict[str, Any], node: dict[str, Any]) -> str:
    if "enum" in node:
        return " or ".join(f"`{choice}`" for choice in node["enum"])
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        spoken: dict[str, str] = {"optionalName": "name or empty", "someLabels": "labels", "size": "size (Mi, Gi, Ti)"}
        return spoken.get(name, str(name))
    if node.get("type") == "array":
        items = node.get("items", {})
        return "list" if "$ref" not in items and "enum" not in items else f"list of {_kind(schema, items)}"
    return str(node.get("type", "any"))


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    found: dict[str, Any] = schema["definitions"][node["$ref"].rpartition("/")[2]]
    return found


def _plain(node: yaml.Node) -> Any:
    return yaml.safe_load(yaml.serialize(node))


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


def pages(folder: Path) -> dict[Path, str]:
    """The files of one chart that are written from others, as they should be."""
    values = list(documented((folder / "values.yaml").read_text()))
    schema = json.loads((folder / "values.schema.json").read_text())
    describe(schema, values)
    return {
        folder / "values.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        folder / "README.md": readme(folder, schema, values),
    }


def main() -> int:
    """Write, or with `--check` compare; returns the exit status."""
    stale = [
        (path, text)
        for chart in sorted(CHARTS.glob("*/Chart.yaml"))
        for path, text in pages(chart.parent).items()
        if not path.exists() or path.read_text() != text
    ]
    check = sys.argv[1:] == ["--check"]
    for path, text in stale:
        sys.stdout.write(f"{'out of date' if check else 'written'}: {path.relative_to(CHARTS.parent)}\n")
        if not check:
            path.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
