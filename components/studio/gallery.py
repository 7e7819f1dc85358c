"""What has been made: the files of one folder, newest first, with the settings that are embedded in each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from components.errors import KinoflowError
from components.generation.files import read_settings

SUFFIXES = (".mp4", ".gif", ".png")
SHORT_DIGEST = 12


@dataclass(frozen=True)
class Piece:
    """A finished file.

    Attributes:
        settings: as embedded; empty when the file holds none.
        made_s: time of its last change, in seconds since 1970.
    """

    path: Path
    settings: dict[str, Any]
    made_s: float

    @property
    def is_video(self) -> bool:
        """Whether a player is needed; a gif moves by itself."""
        return self.path.suffix == ".mp4"

    @property
    def prompt(self) -> str:
        """What was asked for."""
        return str(self.settings.get("prompt", self.path.stem))

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels, where the file says so."""
        config = self.settings.get("config", {})
        return (config["height"], config["width"]) if {"height", "width"} <= set(config) else None


def list_pieces(folder: Path, limit: int = 60) -> list[Piece]:
    """The newest files of the folder; ones that cannot be read are left out."""
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.suffix in SUFFIXES and path.name[0] != "."]
    newest = sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)[:limit]
    return [read_piece(path) for path in newest]


def read_piece(path: Path) -> Piece:
    """The file with its settings."""
    return _read(path, path.stat().st_mtime)


@lru_cache(maxsize=512)
def _read(path: Path, made_s: float) -> Piece:
    try:
        settings = read_settings(path)
    except KinoflowError:  # somebody else's file
        settings = {}
    return Piece(path, settings, made_s)


def settings_of(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """What was asked for, in the order people look for it."""
    config = settings.get("config", {})
    sampling = config.get("sampling", {})
    shown = [
        ("Task", str(config.get("task") or "").replace("_", " ")),
        ("Seed", settings.get("seed")),
        ("Size", _join(" × ", config.get("width"), config.get("height"))),
        ("Frames", 1 if config.get("task") == "text_to_image" else config.get("num_frames")),
        ("Clips", config["loops"] if config.get("loops", 1) > 1 else ""),
        ("Per second", settings.get("fps")),
        ("Steps", sampling.get("num_inference_steps")),
        ("Guidance", sampling.get("guidance_scale")),
        ("Method", {"own": ""}.get(sampling.get("method"), sampling.get("method"))),
        ("Not", config.get("negative_prompt")),
    ]
    return [(name, _plain(value)) for name, value in shown if value not in (None, "")]


def lineage_of(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Which checkpoint drew it, and which dataset that was trained on."""
    shown = [
        ("Checkpoint", settings.get("checkpoint")),
        ("Its digest", _short(settings.get("checkpoint_digest"))),
        ("Dataset", _short(settings.get("dataset_digest"))),
        ("Data", settings.get("data")),
    ]
    return [(name, str(value)) for name, value in shown if value]


def _join(sign: str, *values: object) -> str:
    return "" if None in values else sign.join(map(str, values))


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(digest: str | None) -> str:
    return (digest or "")[:SHORT_DIGEST]
