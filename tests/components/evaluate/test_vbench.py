"""Videos in VBench's layout, and its results back, on a real tiny network and real files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from components import manifest, store
from components.config import SamplingConfig, TrackingConfig
from components.errors import KinoflowError
from components.evaluate import KIND, METRICS, EvaluateReport
from components.evaluate.vbench import export, plan_export, read_suite
from components.evaluate.vbench_results import import_results, read_results
from components.generation import Bundle, to_pixels
from components.generation.settings import GenerationConfig
from components.intervals import share_score
from components.video import decode_frames, write_image
from model.autoencoder import fit_autoencoder
from model.config import STDiT2Config
from model.diffusion_config import FlowConfig
from model.encoder_config import AutoencoderConfig, TextEncoderConfig
from model.stdit2 import STDiT2
from model.text import build_text_encoder

T2V = [
    {"prompt_en": "a red circle", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
    {"prompt_en": "a still life", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a red circle", "dimension": ["object_class", "color"]},
]
I2V = [
    {
        "prompt_en": "a red circle",
        "dimension": ["i2v_subject"],
        "image_type": "other",
        "image_name": "a red circle.jpg",
    },
    {"prompt_en": "a red circle, camera pans left", "dimension": ["camera_motion"]},
]
SMALL = GenerationConfig(num_frames=4, height=32, width=32, seed=7, sampling=SamplingConfig(num_inference_steps=1))


def suite_file(folder: Path, entries: object) -> Path:
    path = folder / "suite.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    picture = np.full((1, 32, 32, 3), 200, np.uint8)
    network = STDiT2(
        STDiT2Config(
            in_channels=4, hidden_size=24, depth=1, num_heads=2, caption_channels=16, model_max_length=12, qk_norm=True
        )
    )
    network.initialize(torch.Generator().manual_seed(0))
    words = TextEncoderConfig(hidden_size=16, num_heads=2, model_max_length=12)
    small = AutoencoderConfig(latent_channels=4, hidden_channels=8, depth=1, steps=0, crop_px=16)
    return Bundle(
        network=network.eval(),
        diffusion=FlowConfig(),
        autoencoder=fit_autoencoder(list(to_pixels(picture).permute(1, 0, 2, 3)), small),
        text_encoder=build_text_encoder(["a red circle"], words),
        checkpoint="here",
        checkpoint_digest="0" * 64,
        data="there",
    )  # fmt: skip


def test_a_prompt_of_several_dimensions_is_made_once(tmp_path):
    suite = read_suite(suite_file(tmp_path, T2V))
    assert [(prompt.text, prompt.dimensions, prompt.num_samples) for prompt in suite] == [
        ("a red circle", ("color", "object_class"), 5),
        ("a still life", ("temporal_flickering",), 25),
    ]
    assert [prompt.text for prompt in read_suite(suite_file(tmp_path, T2V), ["object_class"])] == ["a red circle"]
    planned = plan_export(suite, tmp_path, 0)
    assert len(planned) == 30 == len({video.seed for video in planned})


def test_videos_lie_as_vbench_looks_for_them(tmp_path, bundle):
    suite = read_suite(suite_file(tmp_path, T2V), ["color"])
    made: list[int] = []
    folder = export(bundle, suite, tmp_path / "out", SMALL, batch_size=2, on_batch=made.append)
    names = [f"a red circle-{index}.mp4" for index in range(5)]
    assert sorted(path.name for path in folder.iterdir()) == names, "nothing else: VBench lists this folder"
    assert made == [2, 2, 1]
    assert len(list(decode_frames(folder / names[0]))) == 4
    told = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    assert [(video["name"], video["seed"]) for video in told["videos"]] == [(n, 7 + i) for i, n in enumerate(names)]
    before = (folder / names[3]).read_bytes()
    (folder / names[3]).unlink()
    made.clear()
    export(bundle, suite, tmp_path / "out", SMALL, on_batch=made.append)
    assert made == [1]
    assert (folder / names[3]).read_bytes() == before, "the seed belongs to the video, not to the batch"


def test_camera_prompts_begin_from_the_picture_without_the_camera(tmp_path, bundle):
    suite = read_suite(suite_file(tmp_path, I2V))
    assert [prompt.image for prompt in suite] == ["a red circle.jpg", "a red circle.jpg"]
    with pytest.raises(KinoflowError, match="begins from pictures; name their folder"):
        export(bundle, suite, tmp_path / "out", SMALL)
    with pytest.raises(KinoflowError, match=r"'a red circle.jpg' of the suite is not in"):
        export(bundle, suite, tmp_path / "out", SMALL, images=tmp_path)
    write_image(tmp_path / "a red circle.jpg", np.full((48, 64, 3), (250, 20, 20), np.uint8))
    folder = export(bundle, suite, tmp_path / "out", SMALL, images=tmp_path)
    assert len(list(folder.iterdir())) == 10


@pytest.mark.parametrize("entries", [{"a": 1}, [{"prompt": "x"}], [1], "text"])
def test_what_is_no_suite_is_one_sentence(entries, tmp_path):
    with pytest.raises(KinoflowError, match="is no prompt suite of VBench"):
        read_suite(suite_file(tmp_path, entries))


def test_prompts_that_cannot_be_files_are_refused(tmp_path):
    for text in ("a" * 300, "up/down"):
        suite = read_suite(suite_file(tmp_path, [{"prompt_en": text, "dimension": ["color"]}]))
        with pytest.raises(KinoflowError, match="cannot be a file name"):
            plan_export(suite, tmp_path, 0)
    with pytest.raises(KinoflowError, match="no prompt of scene"):
        read_suite(suite_file(tmp_path, T2V), ["scene"])


def test_results_get_intervals_over_videos(tmp_path):
    def videos(*values: float | bool) -> list[dict[str, object]]:
        return [{"video_path": f"{index}.mp4", "video_results": value} for index, value in enumerate(values)]

    path = tmp_path / "x_eval_results.json"
    told = {
        "dynamic_degree": [0.75, videos(True, True, True, False)],
        "imaging_quality": [0.6, videos(50.0, 60.0, 70.0)],
        "human_action": 0.4,
    }
    path.write_text(json.dumps(told), encoding="utf-8")
    scores = read_results(path)
    assert scores["dynamic_degree"] == share_score(3, 4)
    assert (scores["imaging_quality"].mean, scores["imaging_quality"].n) == (0.6, 3)
    assert 0.5 <= scores["imaging_quality"].low < 0.6 < scores["imaging_quality"].high < 0.71
    assert scores["human_action"].n == 1
    for text in ("{}", "[1]", '{"a": ["much"]}', '{"a": NaN}', "no json"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(KinoflowError, match=r"is no result of VBench|holds no result"):
            read_results(path)


def test_results_join_the_scores_of_an_evaluation(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    report = EvaluateReport(
        checkpoint_digest="0", stage="stage3", held_out_loss=None, held_out_loss_low=None, held_out_loss_high=None,
        held_out=(), scores={"loop": {"continuous": share_score(1, 2)}}, samples=2,
    )  # fmt: skip
    evaluation, out = str(tmp_path / "evaluate"), str(tmp_path / "vbench")
    with manifest.publish(evaluation, KIND, config=SMALL, inputs={}) as publication:
        (publication.directory / METRICS).write_text(report.model_dump_json(), encoding="utf-8")
    path = tmp_path / "x_eval_results.json"
    path.write_text('{"color": [1.0, [{"video_path": "0.mp4", "video_results": 1.0}]]}', encoding="utf-8")
    scores = import_results([path], TrackingConfig(), evaluation=evaluation, out=out)
    again = EvaluateReport.model_validate_json(store.read_bytes(store.join(out, METRICS)))
    assert again.scores == {**report.scores, "vbench": scores}
    assert set(manifest.load(out).files) == {METRICS, "vbench/x_eval_results.json"}
