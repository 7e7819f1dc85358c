"""Shells and stages cannot drift apart: same inputs, same command line, same names."""

import importlib
import inspect

import pytest

from components.config import EvaluateConfig, TrackingConfig
from components.errors import KinoflowError
from pipelines.ops import PARTS_OF_CURATE, STAGES, make_ops
from pipelines.shell import stage_arguments, stage_function

SHELLS = {stage.__name__: stage for stage in STAGES} | {f"curate.{shell.__name__}": shell for shell in PARTS_OF_CURATE}
NAMES = list(SHELLS)


def stage_inputs(name: str) -> set[str]:
    """What the function behind a shell takes, with `tracking` spread into its fields."""
    inputs = set(inspect.signature(stage_function(name)).parameters)
    return (inputs - {"tracking"}) | (set(TrackingConfig.model_fields) if "tracking" in inputs else set())


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_takes_what_its_stage_takes(name: str) -> None:
    own = {"manifest", "dataset_digest"} if name == "bucket" else {"manifest", "report", "metrics"}
    assert set(inspect.signature(SHELLS[name]).parameters) - own == stage_inputs(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_takes_what_the_stage_takes(name: str) -> None:
    """Typer makes one option of each parameter of `main`, which lives in the stage's package or file."""
    package, _, function = name.partition(".")
    stage = importlib.import_module(f"components.{package}")
    module = importlib.import_module(f"components.{package}.__main__") if hasattr(stage, "__path__") else stage
    main = getattr(module, function.removeprefix("curate_") or "main")
    assert set(inspect.signature(main).parameters) == set(inspect.signature(stage_function(name)).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_the_body_is_one_import_and_one_call(name: str) -> None:
    body = inspect.getsource(SHELLS[name]).split('"""')[2].strip().splitlines()
    statements = [line for line in body if line.startswith("    ") and line[4] not in " )"]
    assert [body[0].strip().split()[0], *(line.split()[0] for line in statements)] == ["from", "return"]
    assert f'"{name}", manifest.path' in "".join(body)


def test_components_install_nothing_and_carry_the_image() -> None:
    ops = make_ops("registry.example/kinoflow-python@sha256:0123")
    for name in NAMES:
        container = getattr(ops, name.rpartition(".")[2]).component_spec.implementation.container
        assert container.image == "registry.example/kinoflow-python@sha256:0123"
        assert "pip install" not in " ".join(container.command)


def test_the_data_image_is_only_of_what_it_can_do() -> None:
    ops = make_ops("train@sha256:1", {"ingest": "data@sha256:2"})
    images = {name: getattr(ops, name).component_spec.implementation.container.image for name in ("ingest", "bucket")}
    assert images == {"ingest": "data@sha256:2", "bucket": "train@sha256:1"}


def test_text_becomes_the_arguments_of_a_stage() -> None:
    function = stage_function("evaluate")
    config = EvaluateConfig(seed=7, num_saved=3)
    inputs: dict[str, str | None] = {
        "config": config.model_dump_json(), "experiment": "shapes", "run_name": "mine", "dataset_digest": "ab12",
        "checkpoint": "s3://b/stage3/step-00000010", "data": "s3://b/bucket", "out": "s3://b/evaluate",
    }  # fmt: skip
    arguments = stage_arguments(function, "evaluate", inputs)
    assert arguments == {
        "config": config,
        "tracking": TrackingConfig(experiment="shapes", run_name="mine", dataset_digest="ab12"),
        "checkpoint": "s3://b/stage3/step-00000010",
        "data": "s3://b/bucket",
        "out": "s3://b/evaluate",
    }
    with pytest.raises(KinoflowError, match="evaluate does not take sauce"):
        stage_arguments(function, "evaluate", {**inputs, "sauce": "x"})
    with pytest.raises(KinoflowError, match="config of evaluate: seed"):
        stage_arguments(function, "evaluate", {**inputs, "config": '{"seed": "many"}'})
