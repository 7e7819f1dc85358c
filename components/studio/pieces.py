"""How a finished file looks: playing, with its settings and where it comes from, as a card and in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from nicegui import ui

from components.studio.gallery import Piece, lineage_of, settings_of

SMALL_PX = 256
"""Below this height pixels are shown as squares: enlarging must not invent detail."""


def address_of(path: Path) -> str:
    """Where the server has a file."""
    return f"/made/{quote(path.name)}"


def show_media(piece: Piece, size: str) -> None:
    """The file, playing in a loop; `size` is a class of the style sheet."""
    small = piece.size is not None and min(piece.size) < SMALL_PX
    classes = f"film {size}" + (" pixelated" if small else "")
    element = ui.element("video" if piece.is_video else "img").classes(classes)
    element.props["src"] = address_of(piece.path)
    element.props["title" if piece.is_video else "alt"] = piece.prompt
    if piece.size is not None:
        element.style(f"aspect-ratio: {piece.size[1]} / {piece.size[0]}")
    if piece.is_video:
        element.props("loop muted playsinline preload=metadata")
        element.props("autoplay controls" if size == "big" else "autoplay")


def show_piece(piece: Piece) -> None:
    """A file in full: below its picture, or beside it where that leaves room, all that is known about it."""
    height, width = piece.size or (1, 1)
    with ui.element("div").classes("whole" if width > 1.4 * height else "whole upright"):
        show_media(piece, "big")
        with ui.column().classes("facts"):
            _show_facts(piece)


def _show_facts(piece: Piece) -> None:
    """Prompt, settings, lineage, and the file itself."""
    ui.label(piece.prompt).classes("prompt").props("data-testid=drawn-prompt")
    with ui.row().classes("chips").props("data-testid=settings"):
        for name, value in settings_of(piece.settings):
            with ui.row().classes("chip"):
                ui.label(name).classes("key")
                ui.label(value)
    with ui.column().classes("lineage").props("data-testid=lineage"):
        for name, value in lineage_of(piece.settings):
            with ui.row():
                ui.label(name).classes("key")
                ui.label(value).classes("code")
    link = ui.link("Download", f"{address_of(piece.path)}?download=1").classes("download")
    link.props(f'download="{piece.path.name}" data-testid=download')
    link.tooltip("The settings are embedded in the file.")


class Reel:
    """The gallery: a card for each file.

    Args:
        reuse: called with a piece whose settings a person wants again.
    """

    def __init__(self, reuse: Callable[[Piece], None]) -> None:
        self._reuse = reuse
        self._shown: list[Path] = []
        self._box = ui.element("div").classes("reel").props("data-testid=reel")
        with ui.dialog() as self._dialog, ui.card().classes("detail"):
            self._detail = ui.column().classes("panel")

    def show(self, pieces: Sequence[Piece]) -> None:
        """Show these; nothing happens when they are shown already."""
        paths = [piece.path for piece in pieces]
        if paths == self._shown:
            return
        self._shown = paths
        self._box.clear()
        with self._box:
            for piece in pieces:
                self._build_card(piece)

    def _build_card(self, piece: Piece) -> None:
        card = ui.element("button").classes("card").props("type=button data-testid=card")
        card.on("click", lambda: self._open(piece))
        with card:
            show_media(piece, "small")
            ui.label(piece.prompt).classes("prompt")
            ui.label(" · ".join(value for _, value in settings_of(piece.settings)[:3])).classes("hint")

    def _open(self, piece: Piece) -> None:
        self._detail.clear()
        with self._detail:
            show_piece(piece)
            with ui.row().classes("actions"):
                again = ui.button("Use these settings", on_click=lambda: (self._dialog.close(), self._reuse(piece)))
                again.props("flat dense no-caps data-testid=reuse")
                ui.button("Close", on_click=self._dialog.close).props("flat dense no-caps")
        self._dialog.open()
