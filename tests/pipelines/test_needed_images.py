"""`kinoflow images`: what a registry of one's own must hold, told by what is rendered and compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from components.errors import KinoflowError
from pipelines.cli import app
from pipelines.needed_images import by_image, of_chart, of_pipeline
from tests.charts.rendering import CASES, CHARTS_FOLDER, containers_of, manifests, pod_of

TRAIN, DATA = (f"registry.example.org/kinoflow-{name}@sha256:{'0' * 64}" for name in ("train", "data"))


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_every_container_of_every_chart_is_in_the_list(chart: str, case: str) -> None:
    listed = {
        one.image for one in of_chart(CHARTS_FOLDER / chart, CHARTS_FOLDER / chart / "ci" / f"{case}-values.yaml")
    }
    started = {
        container["image"]
        for pod in filter(None, map(pod_of, manifests(chart, case)))
        for container in containers_of(pod)
        if container.get("image")
    }
    assert listed == started


def test_values_decide_what_is_listed(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mlflow: {image: 'registry.local/mlflow:9'}\n")
    before = {one.image for one in of_chart(CHARTS_FOLDER / "platform", None)}
    after = {one.image for one in of_chart(CHARTS_FOLDER / "platform", tmp_path / "mine.yaml")}
    assert "registry.local/mlflow:9" in after - before
    with pytest.raises(KinoflowError, match=r"chart platform cannot be rendered: .*imagee"):
        (tmp_path / "wrong.yaml").write_text("mlflow: {imagee: x}\n")
        of_chart(CHARTS_FOLDER / "platform", tmp_path / "wrong.yaml")


def test_the_compiled_graph_names_its_own(tmp_path: Path) -> None:
    graph = tmp_path / "graph.yaml"
    compiled = CliRunner().invoke(app, ["compile", "-p", "smoke", "--image", TRAIN, "-o", str(graph)])
    assert compiled.exit_code == 0, compiled.output
    assert set(by_image(of_pipeline(graph))) == {TRAIN}
    document, *others = yaml.safe_load_all(graph.read_text())
    document["deploymentSpec"]["executors"]["exec-ingest"]["container"]["image"] = DATA
    graph.write_text(yaml.safe_dump_all([document, *others]))
    assert by_image(of_pipeline(graph))[DATA] == ["pipeline ingest"]
    with pytest.raises(KinoflowError, match="no compiled pipeline"):
        of_pipeline(CHARTS_FOLDER / "platform" / "values.yaml")


def test_the_command_prints_names_reasons_and_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(CHARTS_FOLDER.parent)

    def told(*options: str) -> list[str]:
        shown = CliRunner().invoke(app, ["images", *options])
        assert shown.exit_code == 0, shown.output
        return shown.output.splitlines()

    CliRunner().invoke(app, ["compile", "-p", "smoke", "--image", TRAIN, "-o", str(tmp_path / "graph.yaml")])
    names = told("--pipeline", str(tmp_path / "graph.yaml"))
    assert names == sorted(set(names))
    assert TRAIN in names
    assert any(name.startswith("nvcr.io/nvidia/k8s-device-plugin:") for name in names)
    assert not any("nvcr.io" in name for name in told("--without", "gpu-nodes"))
    why = told("--why", "--values", "platform=charts/platform/ci/external-values.yaml")
    assert [line for line in why if "Job/kinoflow-registration" in line and "kinoflow-submit@sha256:" in line]
    copies = told("--to", "registry.local/video", "--without", "gpu-nodes")
    assert all(line.startswith("skopeo copy --all --preserve-digests docker://") for line in copies)
    assert any(line.endswith("docker://registry.local/video/versity/versitygw:v1.8.0") for line in copies)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--values", "platform"], "write CHART=FILE"),
        (["--values", "other=x.yaml"], "There is no chart 'other'"),
        (["--values", "platform=missing.yaml"], "There is no file missing.yaml"),
        (["--charts", "nowhere"], "There is no chart in nowhere/platform"),
    ],
)
def test_mistakes_are_one_sentence(options: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHARTS_FOLDER.parent)
    assert words in str(CliRunner().invoke(app, ["images", *options]).exception)
