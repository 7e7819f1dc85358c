"""Captions from a real server: asked once, for what is worth it, and every failure is a reason."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from components import store, tables
from components.config import CaptionConfig, ClipModelConfig, CurateConfig, CurationRules, IngestConfig
from components.curate import curate
from components.curate.captioning import caption_clips
from components.curate.rules import apply_rules
from components.curate.scores.clip import load_clip, text_features, with_text_match
from components.errors import KinoflowError
from components.ingest import ingest
from components.manifest import sha256_file
from components.video import write_image, write_video
from tests.components.caption_server import MODEL, CaptionServer, Reply, caption_server, completion
from tests.components.curate.test_clip import clip as clip
from tests.components.curate.test_shots import textured_shots
from tests.conftest import S3Server


@pytest.fixture
def server() -> Iterator[CaptionServer]:
    with caption_server(CaptionServer()) as running:
        yield running


def config(server: CaptionServer, captions: dict[str, Any] | None = None, **changes: Any) -> CurateConfig:
    """Of a stage that asks that server; `changes` are of its source."""
    source = {"kind": "openai", "url": server.url, "model": MODEL, "attempts": 2, "max_wait_s": 0.05, "timeout_s": 5}
    captioner = {"source": source | changes, "short_side_px": 32, "max_failed_share": 1.0}
    told = captions or {}
    captioner |= told.pop("captioner", {})
    return CurateConfig(workers=1, captions=CaptionConfig.model_validate({"captioner": captioner, **told}))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, str]:
    """Undecided clips of two videos (one of two shots) and of one still image, and where their objects are."""
    root = tmp_path_factory.mktemp("clips")
    shots = {"a": [(0, 20), (20, 40)], "b": [(0, 20)]}
    rows = []
    for number, (name, spans) in enumerate(shots.items()):
        path = root / "objects" / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, textured_shots([20] * len(spans), seed=number), 10)
        for index, (start, end) in enumerate(spans):
            rows.append(row(name, path, index, start_frame=start, end_frame=end, num_frames=end - start))
    still = root / "objects" / "c.png"
    write_image(still, textured_shots([1], seed=9)[0])
    rows.append(row("c", still, 0, media="image", start_frame=0, end_frame=1, num_frames=1, motion=None))
    return tables.frame(rows, tables.CLIPS), str(root / "objects")


def row(name: str, path: Path, index: int, **changes: object) -> dict[str, object]:
    return {
        "clip_id": f"{name}-{index:04d}", "source_id": name, "path": path.name, "media": "video", "shot_index": index,
        "object_key": path.name, "content_sha256": sha256_file(path), "width": 96, "height": 64, "motion": 1.0,
        "sharpness": 100.0, "brightness": 120.0, "contrast": 40.0, "black_share": 0.0, "text_share": 0.0,
    } | changes  # fmt: skip


def by_id(clips: pl.DataFrame) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in clips.iter_rows(named=True)}


def test_clips_are_described_refined_and_marked(
    clips: tuple[pl.DataFrame, str], server: CaptionServer, tmp_path: Path
) -> None:
    table, objects = clips
    found = caption_clips(table, objects, config(server), str(tmp_path))
    assert found["caption"].to_list() == ["a red ball. it rolls."] * 4
    assert set(found["caption_origin"]) == {"model"}
    assert set(found["caption_model"]) == {MODEL}
    assert found["outcome"].null_count() == 4
    assert found.schema == table.schema
    assert server.busiest <= 8
    assert sorted(len(pictures) for pictures in server.pictures) == [1, 3, 3, 3]
    assert {size for pictures in server.pictures for size in pictures} == {(32, 48)}
    prompts = {request["messages"][0]["content"][-1]["text"] for request in server.requests}
    assert any(prompt.startswith("Describe this picture") for prompt in prompts)
    assert any(prompt.startswith("These are three frames of one short video") for prompt in prompts)
    assert all("at most six sentences" in prompt and "style" in prompt for prompt in prompts)


def test_nothing_is_asked_twice_and_other_words_are_asked_anew(
    clips: tuple[pl.DataFrame, str], server: CaptionServer, tmp_path: Path
) -> None:
    table, objects = clips
    first = caption_clips(table, objects, config(server), str(tmp_path))
    again = caption_clips(table, objects, config(server, {"clean": False, "strip_prefixes": False}), str(tmp_path))
    assert len(server.requests) == 4
    assert again["caption"].to_list() == ["The video shows a red ball. It rolls."] * 4
    assert caption_clips(table, objects, config(server), str(tmp_path)).equals(first)
    damaged = next(path for path in tmp_path.rglob("*.json"))
    damaged.write_text("{", encoding="utf-8")
    assert caption_clips(table, objects, config(server), str(tmp_path)).equals(first)
    assert len(server.requests) == 5
    told = {"captioner": {"num_frames": 1, "prompt": "What is this?", "max_new_tokens": 7}}
    caption_clips(table, objects, config(server, told, concurrency=1), str(tmp_path))
    assert len(server.requests) == 9
    assert {request["max_tokens"] for request in server.requests[5:]} == {7}
    assert {len(pictures) for pictures in server.pictures[5:]} == {1}


def test_only_clips_worth_it_are_asked_about(
    clips: tuple[pl.DataFrame, str], server: CaptionServer, tmp_path: Path
) -> None:
    table, objects = clips
    table = table.with_columns(
        motion=pl.when(pl.col("clip_id") == "b-0000").then(0.0).otherwise("motion"),
        caption=pl.when(pl.col("clip_id") == "c-0000").then(pl.lit("a still")).otherwise("caption"),
        near_duplicate_group=pl.when(pl.col("source_id") == "a").then(pl.lit("a-0000")),
    )
    found = by_id(caption_clips(table, objects, config(server), str(tmp_path)))
    assert {name: row["caption"] for name, row in found.items()} == {
        "a-0000": "a red ball. it rolls.", "a-0001": None, "b-0000": None, "c-0000": "a still"
    }  # fmt: skip
    server.reply = lambda _: (400, {}, b"no")
    told = {"captioner": {"prompt": "Anew."}}
    found = by_id(caption_clips(table, objects, config(server, told), str(tmp_path)))
    failed = [name for name, row in found.items() if row["reason"] == "caption_failed"]
    assert failed == ["a-0000", "a-0001"]  # when the first cannot be described, its near-duplicate may serve


def test_a_written_caption_is_matched_before_the_rules_are_asked(
    clips: tuple[pl.DataFrame, str], server: CaptionServer, tmp_path: Path, clip: ClipModelConfig
) -> None:
    table, objects = clips
    told = config(server, {"camera_sentence": True}).model_copy(
        update={"clip": clip, "rules": CurationRules(min_text_match=0.0)}
    )
    caption = "a red ball. it rolls. the camera is static."
    features = text_features(load_clip(clip.folder, "clip.folder"), clip.folder, caption)
    signs = {"a-0000": -1, "a-0001": 1, "b-0000": 1, "c-0000": -1}
    embeddings = [(signs[name] * features).astype(np.float16).tobytes() for name in table["clip_id"]]
    table = table.with_columns(
        embedding=pl.Series(embeddings),
        camera_motion=pl.lit("static"),
        near_duplicate_group=pl.when(pl.col("source_id") == "a").then(pl.lit("a-0000")),
        caption=pl.when(pl.col("clip_id") == "c-0000").then(pl.lit("a still")).otherwise("caption"),
    )
    found = caption_clips(table, objects, told, str(tmp_path))
    # The first of the near-duplicates turns out not to be what its caption says, so the other one is asked about.
    assert len(server.requests) == 3
    assert found["caption"].to_list() == [caption] * 3 + ["a still. the camera is static."]
    assert found["text_match"].null_count() == 0
    expected = with_text_match(found.with_columns(text_match=pl.lit(None, pl.Float64)), clip)["text_match"]
    assert found["text_match"].to_list() == expected.to_list()
    decided = by_id(apply_rules(found, told.rules, caption_required=True))
    reasons = {name: row["reason"] for name, row in decided.items() if name != "c-0000"}
    assert reasons == {"a-0000": "low_text_match", "a-0001": None, "b-0000": None}


def replies(*items: Reply) -> Any:
    left = list(items)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        ((500, {}, b"oops"), r"answered HTTP 500"),
        ((400, {}, b"{}"), r"answered HTTP 400"),
        ((200, {}, b"<html>Welcome</html>"), r"answered with no chat completion \(it begins '<html>Welcome</html>'\)"),
        ((200, {}, b""), r"no chat completion \(it is empty\)"),
        ((200, {}, b"[" * 100_000), r"no chat completion"),
        ((200, {}, b'{"choices": []}'), r"answered with no caption"),
        ((200, {}, completion(None)), r"no chat completion"),
        ((200, {}, completion("  \n ")), r"answered with no caption"),
        ((200, {}, completion("word " * 20_000)), r"answered with 99999 characters, no caption"),
        ((200, {}, b" " * (3 << 20)), r"sent more than 1 MiB"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), r"answered HTTP 302"),
    ],
)
def test_nonsense_is_the_reason_of_each_clip(
    clips: tuple[pl.DataFrame, str], server: CaptionServer, tmp_path: Path, reply: Reply, detail: str
) -> None:
    table, objects = clips
    server.reply = replies(reply)
    found = caption_clips(table, objects, config(server), str(tmp_path))
    assert set(found["reason"]) == {"caption_failed"}
    assert set(found["outcome"]) == {"dropped"}
    assert found["detail"].str.contains(detail).all(), found["detail"][0]
    assert found["detail"].str.starts_with("The caption server").all()
    assert list(tmp_path.iterdir()) == []
    optional = caption_clips(table, objects, config(server, {"required": False}), str(tmp_path))
    assert optional["outcome"].null_count() == 4
    with pytest.raises(
        KinoflowError, match=r"4 of 4 clips got no caption \(the first: The caption server .*start again"
    ):
        caption_clips(table, objects, config(server, {"captioner": {"max_failed_share": 0.5}}), str(tmp_path))


def test_a_server_that_is_busy_is_asked_again_when_it_says(
    clips: tuple[pl.DataFrame, str], server: CaptionServer, tmp_path: Path
) -> None:
    table, objects = clips
    server.reply = replies((429, {"Retry-After": "1"}, b""), (200, {}, completion("A ball")))
    started_s = time.monotonic()
    found = caption_clips(table.head(1), objects, config(server, max_wait_s=5), str(tmp_path))
    assert time.monotonic() - started_s > 1
    assert found["caption"].to_list() == ["a ball"]
    when = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.reply = replies((503, {"Retry-After": when}, b""), (200, {}, completion("A red ball. It is cu", "length")))
    found = caption_clips(table.tail(1), objects, config(server, max_wait_s=5), str(tmp_path))
    assert found["caption"].to_list() == ["a red ball."]


def test_a_slow_server_is_given_up(clips: tuple[pl.DataFrame, str], server: CaptionServer, tmp_path: Path) -> None:
    def slow(_: object) -> Reply:
        time.sleep(0.5)
        return 200, {}, completion("late")

    table, objects = clips
    server.reply = slow
    found = caption_clips(table, objects, config(server, timeout_s=0.2, attempts=1), str(tmp_path))
    assert set(found["detail"]) == {"The caption server did not answer within 0.2 s."}


def test_a_server_that_stops_working_ends_the_stage_and_what_it_said_is_kept(
    clips: tuple[pl.DataFrame, str], server: CaptionServer, tmp_path: Path
) -> None:
    table, objects = clips
    many = pl.concat([table.filter(pl.col("clip_id") == "b-0000")] * 14).with_columns(
        clip_id=pl.Series([f"b-{number:04d}" for number in range(14)]),
        start_frame=pl.Series(range(14), dtype=pl.Int32),
        num_frames=pl.lit(2, pl.Int32),
    )
    config_ = config(server, attempts=1, concurrency=1)
    rules = CurationRules(min_frames=1)
    config_ = config_.model_copy(update={"rules": rules})
    good: list[Reply] = [(200, {}, completion("A ball."))] * 3
    server.reply = replies(*good, (503, {}, b""))
    with pytest.raises(KinoflowError, match=r"no longer works \(it answered HTTP 503\); the captions it gave are kept"):
        caption_clips(many, objects, config_, str(tmp_path))
    assert len(list(tmp_path.rglob("*.json"))) == 3
    server.reply = replies(good[0])
    server.requests.clear()
    assert caption_clips(many, objects, config_, str(tmp_path))["caption"].to_list() == ["a ball."] * 14
    assert len(server.requests) == 11


def test_the_key_comes_from_the_environment_and_is_never_told(
    clips: tuple[pl.DataFrame, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    table, objects = clips
    caplog.set_level(logging.DEBUG)
    with caption_server(CaptionServer(key="sesame-open")) as server:
        keyed = config(server, api_key_variable="CAPTION_KEY")
        with pytest.raises(KinoflowError, match=r"variable CAPTION_KEY is not set"):
            caption_clips(table, objects, keyed, str(tmp_path))
        monkeypatch.setenv("CAPTION_KEY", "wrong-key")
        with pytest.raises(KinoflowError, match=r"refuses access \(HTTP 401\); check the key in CAPTION_KEY"):
            caption_clips(table, objects, keyed, str(tmp_path))
        monkeypatch.setenv("CAPTION_KEY", "sesame-open")
        assert caption_clips(table, objects, keyed, str(tmp_path))["caption"].null_count() == 0
    texts = [caplog.text, *(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.json"))]
    assert not any("sesame" in text or "wrong-key" in text for text in texts)
    with pytest.raises(ValidationError, match="name an environment variable in api_key_variable"):
        config(server, url="http://user:secret@host/v1")
    with pytest.raises(ValidationError, match="must be an http"):
        config(server, url="ftp://host/v1")


def test_frames_that_cannot_be_read_are_the_clips_reason(
    clips: tuple[pl.DataFrame, str], server: CaptionServer, tmp_path: Path
) -> None:
    table, objects = clips
    table = table.with_columns(
        object_key=pl.when(pl.col("source_id") == "b").then(pl.lit("gone.mp4")).otherwise("object_key"),
        end_frame=pl.when(pl.col("clip_id") == "a-0001").then(90).otherwise("end_frame").cast(pl.Int32),
        num_frames=pl.when(pl.col("clip_id") == "a-0001").then(70).otherwise("num_frames").cast(pl.Int32),
        content_sha256=pl.when(pl.col("source_id") == "c").then(pl.lit("0" * 64)).otherwise("content_sha256"),
    )
    found = by_id(caption_clips(table, objects, config(server), str(tmp_path)))
    assert found["a-0000"]["caption"] == "a red ball. it rolls."
    assert "ends after 40 frames" in found["a-0001"]["detail"]
    assert "There is no object" in found["b-0000"]["detail"]
    assert "no longer has the bytes" in found["c-0000"]["detail"]


def test_the_camera_is_mentioned_where_that_is_wanted(
    clips: tuple[pl.DataFrame, str], server: CaptionServer, tmp_path: Path
) -> None:
    table, objects = clips
    table = table.with_columns(camera_motion=pl.Series(["pan left", "unknown", "static", None]))
    found = caption_clips(table, objects, config(server, {"camera_sentence": True}), str(tmp_path))
    ball = "a red ball. it rolls."
    assert found["caption"].to_list() == [
        f"{ball} the camera is panning left.", ball, f"{ball} the camera is static.", ball
    ]  # fmt: skip


def test_the_stage_asks_before_it_decides(server: CaptionServer, tmp_path: Path, s3_server: S3Server) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/a.mp4", textured_shots([14, 16], seed=1), 24)
    bucket = s3_server.bucket()
    ingest(IngestConfig(), str(tmp_path / "videos"), f"{bucket}/objects", f"{bucket}/ingest")
    report = curate(config(server), f"{bucket}/ingest", f"{bucket}/objects", f"{bucket}/curate")
    assert (report.kept, len(server.requests)) == (2, 2)
    assert len(store.list_objects(f"{bucket}/captions")) == 2
    curate(
        config(server, {"strip_prefixes": False}), f"{bucket}/ingest", f"{bucket}/objects", f"{bucket}/curate"
    )  # fmt: skip
    assert len(server.requests) == 2


def test_a_server_that_is_not_there_is_known_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/a.mp4", textured_shots([14], seed=1), 24)
    root = str(tmp_path)
    ingest(IngestConfig(), f"{root}/videos", f"{root}/objects", f"{root}/ingest")
    gone = config(CaptionServer(url="http://127.0.0.1:9/v1"))
    with pytest.raises(KinoflowError, match=r"caption server at http://127.0.0.1:9/v1 cannot be reached .*start it"):
        curate(gone, f"{root}/ingest", f"{root}/objects", f"{root}/curate")
    optional = config(CaptionServer(url="http://127.0.0.1:9/v1"), {"required": False})
    assert curate(optional, f"{root}/ingest", f"{root}/objects", f"{root}/curate").kept == 1
    with (
        caption_server(CaptionServer()) as server,
        pytest.raises(KinoflowError, match=f"no model 'x'; it offers {MODEL}"),
    ):
        curate(config(server, model="x"), f"{root}/ingest", f"{root}/objects", f"{root}/curate")
