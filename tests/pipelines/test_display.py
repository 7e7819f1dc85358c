"""What a person sees: events in, plain lines or a table out."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.local.display import EventFile, RunDisplay, duration

NAMES = ("ingest", "curate")
EVENTS = [
    {"node": "ingest", "state": "running", "inputs": {}},
    {"task": "ingest", "done": 0, "total": 4, "note": "", "time_s": 1.0},
    {"task": "ingest", "done": 2, "total": 4, "note": "[a].mp4", "time_s": 2.0},
    {"node": "ingest", "state": "done", "seconds": 61.2},
    {"node": "curate", "state": "running", "inputs": {}},
    {"task": "score clips", "done": 1, "total": 9, "note": "", "time_s": 3.0},
    {"error": "The disk is full."},
    {"node": "curate", "state": "failed", "seconds": 2.04},
]


def show(events: list[dict[str, object]], *, terminal: bool) -> tuple[RunDisplay, str]:
    out = io.StringIO()
    display = RunDisplay(NAMES, Console(file=out, force_terminal=terminal, width=100, color_system=None))
    with display:
        for event in events:
            display.handle(event)
    return display, out.getvalue()


def test_plain_lines_tell_states_and_slow_work() -> None:
    display, text = show(EVENTS, terminal=False)
    assert text.splitlines() == [
        "ingest: started", "ingest: done in 1 min 01 s", "curate: started", "curate: failed in 2.0 s",
    ]  # fmt: skip
    assert display.errors == ["The disk is full."]
    assert [node.state for node in display.nodes.values()] == ["done", "failed"]


def test_plain_lines_tell_progress_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    _, text = show(EVENTS[:3], terminal=False)
    assert "ingest: 0/4\n" in text
    assert "ingest: 2/4 [a].mp4\n" in text


def test_a_terminal_gets_one_row_per_node() -> None:
    display, text = show(EVENTS[:6], terminal=True)
    rows = [line.split() for line in text.splitlines() if line.strip()]
    assert "✓ ingest 1 min 01 s" in [" ".join(row).removeprefix("\x1b[?25l") for row in rows]
    running = next(row for row in rows if "curate" in row)
    assert running[:2] == ["▶", "curate"]
    assert "1/9" in running
    assert running[-2:] == ["score", "clips"]
    assert display.table().row_count == 2


def test_time_left_follows_the_pace_since_the_first_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    display = RunDisplay(NAMES, Console(file=io.StringIO()))
    display.handle({"node": "ingest", "state": "running"})
    node = display.nodes["ingest"]
    for at_s, done, left_s in ((0, 40, None), (100, 41, None), (110, 46, 108.0), (200, 100, None)):
        now[0] = at_s
        display.handle({"task": "x", "done": done, "total": 100, "note": ""})
        assert node.eta_s(now[0]) == left_s


def test_events_are_read_once_and_only_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = EventFile(path)
    assert events.new_events() == []
    path.write_text('{"node": "a", "state": "running"}\n{"task": "b', encoding="utf-8")
    assert events.new_events() == [{"node": "a", "state": "running"}]
    with path.open("a", encoding="utf-8") as file:
        file.write('"}\n' + json.dumps({"error": "ä"}) + "\n")
    assert events.new_events() == [{"task": "b"}, {"error": "ä"}]
    assert events.new_events() == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (125, "2 min 05 s"), (3840, "1 h 04 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
