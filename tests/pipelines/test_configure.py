"""What a person fills in becomes what every task is told; and where a run starts and stops in the chain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components import manifest
from components.errors import KinoflowError
from pipelines.config import load_run_config
from pipelines.configure import chain, configure
from pipelines.shell import run_stage
from pipelines.skipping import read_skip

CONFIG = load_run_config("smoke")
COMPILED = CONFIG.model_dump_json(exclude={"cluster"})
NOTHING = {"preset": "", "overrides": "", "start_at": "", "stop_after": "", "from_run": ""}


def told(**given: str) -> dict[str, str]:
    return configure(COMPILED, **{**NOTHING, **given})


def test_left_alone_every_task_is_told_what_the_preset_says_to_the_letter() -> None:
    wanted = {name: section.model_dump_json() for name, section in CONFIG.component_configs().items()}
    assert told() == told(preset="smoke") == wanted
    assert list(wanted) == chain(CONFIG)


def test_single_values_are_changed_as_yaml_or_json() -> None:
    wanted = load_run_config("smoke", {"stages.0.steps": 3, "seed": 7}).component_configs()
    for text in ("{stages.0.steps: 3, seed: 7}", '{"stages.0.steps": 3, "seed": 7}', "stages.0.steps: 3\nseed: 7\n"):
        changed = told(overrides=text)
        assert {name: section.model_dump_json() for name, section in wanted.items()} == changed


def test_another_preset_of_the_image_may_be_named() -> None:
    assert json.loads(told(preset="demo")["stage1"]) == json.loads(
        load_run_config("demo").component_configs()["stage1"].model_dump_json()
    )


def test_the_chain_can_be_entered_and_left_anywhere() -> None:
    parts = told(start_at="stage2", stop_after="stage2", from_run="s3://b/runs/a/")
    skips = {name: read_skip(text) for name, text in parts.items()}
    assert {name for name, skip in skips.items() if skip is None} == {"stage2"}
    assert {name for name, skip in skips.items() if skip and skip.skip == "before"} == {
        "ingest",
        "curate",
        "bucket",
        "stage1",
    }
    before, after = skips["bucket"], skips["evaluate"]
    assert before and before.source("s3://b/runs/new/bucket") == "s3://b/runs/a/bucket"
    assert after and after.source("s3://b/runs/new/evaluate") == "s3://b/runs/new/evaluate"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"preset": "nothing"}, "There is no preset 'nothing'"),
        ({"overrides": "[1, 2]"}, "overrides must be keys and values"),
        ({"overrides": "{a: "}, "overrides is not valid YAML"),
        ({"overrides": "{sede: 1}"}, "sede: unknown key"),
        ({"overrides": "{stages.9.steps: 1}"}, "'9' is not an index"),
        ({"overrides": "{stages.0.name: other}"}, "has the stages other, stage2, stage3"),
        ({"start_at": "stage9"}, "start_at is 'stage9'; choose one of ingest, curate, bucket"),
        ({"start_at": "evaluate", "stop_after": "bucket"}, "nothing would be done"),
        ({"from_run": "s3://b/runs/a"}, "start_at says nothing"),
    ],
)
def test_a_mistake_is_one_sentence(given: dict[str, str], words: str) -> None:
    with pytest.raises(KinoflowError, match=words):
        told(**given)


def test_a_task_before_the_start_hands_on_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "clips").write_text("x")
    earlier = str(tmp_path / "earlier")
    with manifest.publish(f"{earlier}/bucket", "dataset", config={}, inputs={}) as publication:
        (publication.directory / "plan").write_text("x")
    config = told(start_at="stage1", from_run=earlier)["bucket"]
    inputs = {"clips": "c", "objects": "o", "latents": "l", "out": str(tmp_path / "new" / "bucket")}
    paths = [str(tmp_path / name) for name in ("manifest", "digest")]
    assert run_stage("bucket", *paths, config=config, **inputs) == f"{earlier}/bucket"
    assert json.loads(Path(paths[0]).read_text())["uri"] == f"{earlier}/bucket"
    assert Path(paths[1]).read_text() == manifest.load(f"{earlier}/bucket").dataset_digest
    missing = told(start_at="stage1", from_run=str(tmp_path / "nowhere"))["bucket"]
    with pytest.raises(SystemExit, match="The run starts after bucket, which must be there already"):
        run_stage("bucket", *paths, config=missing, **inputs)


def test_a_task_after_the_end_does_nothing(tmp_path: Path) -> None:
    config = told(stop_after="curate")["evaluate"]
    out = str(tmp_path / "run" / "evaluate")
    files = [str(tmp_path / name) for name in ("manifest", "report")]
    assert run_stage("evaluate", files[0], report_path=files[1], config=config, out=out) == out
    assert not (tmp_path / "run").exists()
    assert json.loads(Path(files[0]).read_text()) == {"uri": out, "kind": "", "digest": ""}
    assert "stops before" in Path(files[1]).read_text()
