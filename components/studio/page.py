"""The page: controls on the left, the stage and the reel on the right; one object for each open tab."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nicegui import run, ui

from components.cli import user_sentence
from components.studio.choices import Choice
from components.studio.controls import Controls, UploadRules
from components.studio.gallery import Piece, list_pieces
from components.studio.orders import wish_of
from components.studio.pieces import Reel
from components.studio.session import Job, Session, State
from components.studio.stage import Stage

REFRESH_S, LOOK_AROUND_S = 0.25, 10.0
Catalogue = Callable[[], Sequence[Choice]]
STYLE = Path(__file__).with_name("look.css").read_text(encoding="utf-8")
MARK = (
    '<svg viewBox="0 0 32 32" width="32" height="32" aria-hidden="true"><rect width="32" height="32" rx="8" '
    'fill="#ff9d5c"/><path d="M12.5 9.8v12.4a.8.8 0 0 0 1.2.7l10-6.2a.8.8 0 0 0 0-1.4l-10-6.2a.8.8 0 0 0-1.2.7z" '
    'fill="#17130f"/><g fill="#17130f"><rect x="5" y="7" width="3" height="3" rx="1"/><rect x="5" y="14.5" width="3" '
    'height="3" rx="1"/><rect x="5" y="22" width="3" height="3" rx="1"/></g></svg>'
)


class Shelf:
    """The checkpoints on offer as they were last seen; looking takes time, and a page must open at once."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.choices: list[Choice] = []
        self.look()

    def look(self) -> None:
        """Ask for them again."""
        self.choices = list(self._catalogue())


class Page:
    """What one tab shows.

    Args:
        session: the queue, shared by all tabs.
        shelf: the checkpoints on offer, looked at again now and then.
        rules: for uploads.
    """

    def __init__(self, session: Session, shelf: Shelf, rules: UploadRules) -> None:
        self._session, self._shelf = session, shelf
        self._seen_jobs: list[tuple[int, State]] = []
        ui.add_css(STYLE)
        ui.colors(primary="#ff9d5c", secondary="#343a44", dark="#17191d", dark_page="#0f1013", negative="#8f352e")
        with ui.header().classes("top"):
            ui.html(MARK, sanitize=False)
            ui.label("Kinoflow Studio").classes("title").props("role=heading aria-level=1")
            ui.label("Describe a video, choose a checkpoint, watch it appear. Everything stays on this machine.")
        with ui.row().classes("page"):
            with ui.column().classes("controls"):
                self._controls = Controls(shelf.choices, rules, self._say)
                self._draw = ui.button("Draw", icon="play_arrow", on_click=self._order).props(
                    "unelevated no-caps text-color=dark data-testid=draw"
                )
            with ui.column().classes("main"):
                self._stage = Stage(session)
                self._queue = ui.column().classes("queue").props("data-testid=queue")
                ui.label("Made here").classes("section").props("role=heading aria-level=2")
                self._reel = Reel(self._reuse)
        self._begin()
        ui.timer(REFRESH_S, self._refresh)
        ui.timer(LOOK_AROUND_S, self._look_around)

    def _begin(self) -> None:
        pieces = list_pieces(self._session.folder)
        going_on = [job for job in self._session.jobs() if not job.ended][:1]
        self._stage.show(going_on, pieces[0] if pieces else None)
        self._reel.show(pieces)

    def _order(self) -> None:
        try:
            orders = self._controls.orders()
        except Exception as error:
            sentence = user_sentence(error)
            if sentence is None:
                raise
            self._say(sentence)
            return
        self._stage.show([self._session.submit(order) for order in orders])
        self._refresh()

    def _refresh(self) -> None:
        self._stage.refresh()
        jobs = self._session.jobs()
        states = [(job.number, job.state) for job in jobs]
        if states == self._seen_jobs:
            return
        self._seen_jobs = states
        self._show_queue([job for job in jobs if not job.ended])
        self._reel.show(list_pieces(self._session.folder))

    def _show_queue(self, jobs: list[Job]) -> None:
        self._queue.clear()
        self._queue.set_visibility(len(jobs) > 1)
        with self._queue:
            for job in jobs:
                with ui.row().classes("queued").props("data-testid=queued"):
                    ui.label(f"{job.number}").classes("key")
                    ui.label(job.order.prompt).classes("prompt")
                    ui.label(job.order.label).classes("hint")
                    ui.label(str(job.state)).classes("hint")
                    cancel = ui.button(icon="close", on_click=lambda job=job: self._session.cancel(job))
                    cancel.props('flat dense round size=sm aria-label="Cancel"')

    async def _look_around(self) -> None:
        """Checkpoints and files may have come from elsewhere."""
        await run.io_bound(self._shelf.look)
        self._controls.offer(self._shelf.choices)
        self._reel.show(await run.io_bound(list_pieces, self._session.folder) or [])

    def _reuse(self, piece: Piece) -> None:
        self._controls.take_over(wish_of(piece.settings))

    def _say(self, sentence: str) -> None:
        ui.notify(sentence, type="negative", position="top", timeout=8000, multi_line=True, close_button="Close")
