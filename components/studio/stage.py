"""The middle of the page: what is being drawn, or has just been drawn; two panels side by side in a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from components.studio.gallery import Piece, read_piece
from components.studio.pieces import show_piece
from components.studio.session import Job, Session, State

PLAY_TOGETHER = """
    const films = [...document.querySelectorAll('.stage video')];
    films.forEach(film => { film.pause(); film.currentTime = 0; });
    films.forEach(film => film.play());
"""


class Panel:
    """One drawing from its order to its file."""

    def __init__(self, job: Job, session: Session) -> None:
        self._job, self._session = job, session
        self._shown: State | None = None
        self._box = ui.column().classes("panel").props(f"data-testid=panel data-job={job.number}")
        self.refresh()

    def refresh(self) -> None:
        """Follow the drawing; cheap when nothing has changed."""
        if self._job.state is not self._shown:
            self._shown = self._job.state
            self._box.clear()
            self._box.props(f"data-state={self._shown}")
            with self._box:
                self._build()
        if not self._job.ended:
            self._bar.set_value(self._job.done / self._job.total if self._job.total else 0)
            self._bar.props["indeterminate"] = self._job.state is State.LOADING
            self._line.set_text(progress_line(self._job, self._session.jobs()))

    def _build(self) -> None:
        job = self._job
        with ui.row().classes("caption"):
            ui.label(job.order.label).classes("who")
            ui.label(f"seed {job.order.config.seed}").classes("hint")
        if job.state is State.DONE and job.path is not None:
            show_piece(read_piece(job.path))
        elif job.state is State.FAILED:
            with ui.row().classes("message").props("role=alert data-testid=failure"):
                ui.icon("error_outline")
                ui.label(job.error)
        elif job.state is State.CANCELLED:
            ui.label("Cancelled.").classes("frame empty")
        else:
            height, width = job.order.config.height, job.order.config.width
            with ui.column().classes("frame working").style(f"aspect-ratio: {width} / {height}"):
                self._line = ui.label().props("data-testid=progress aria-live=polite")
                self._bar = ui.linear_progress(0, show_value=False).props("rounded")
                cancel = ui.button("Cancel", on_click=lambda: self._session.cancel(job))
                cancel.props("flat dense no-caps data-testid=cancel")


class Stage:
    """The panels of the drawings a person looks at."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._panels: list[Panel] = []
        self._jobs: list[Job] = []
        self._box = ui.row().classes("stage").props("data-testid=stage")
        self._together = ui.button(
            "Play together", icon="sync", on_click=lambda: ui.run_javascript(PLAY_TOGETHER)
        ).props("flat dense no-caps data-testid=together")  # fmt: skip
        self.show([])

    def show(self, jobs: Sequence[Job], latest: Piece | None = None) -> None:
        """Look at these drawings; without any, at the latest piece."""
        self._jobs = list(jobs)
        self._box.clear()
        self._box.classes(remove="single pair-of-two", add="single" if len(jobs) < 2 else "pair-of-two")
        with self._box:
            self._panels = [Panel(job, self._session) for job in jobs]
            if not jobs and latest is not None:
                with ui.column().classes("panel"):
                    show_piece(latest)
            elif not jobs:
                with ui.column().classes("frame empty").props("data-testid=nothing"):
                    ui.icon("movie_filter").classes("sign")
                    ui.label("Nothing here yet.")
                    ui.label("Describe a video on the left and press Draw.").classes("hint")
        self._settle()

    def refresh(self) -> None:
        """Follow the drawings."""
        for panel in self._panels:
            panel.refresh()
        self._settle()

    def _settle(self) -> None:
        done = len(self._jobs) > 1 and all(job.state is State.DONE for job in self._jobs)
        if done and not self._together.visible:
            ui.run_javascript(f"setTimeout(() => {{ {PLAY_TOGETHER} }}, 400)")
        self._together.set_visibility(done)


def progress_line(job: Job, jobs: Sequence[Job]) -> str:
    """One line on where a drawing is."""
    if job.state is State.WAITING:
        before = sum(not other.ended and other.number < job.number for other in jobs)
        return f"Waiting; {before} before it" if before else "Waiting"
    if job.cancelled.is_set():
        return "Cancelling after this step"
    if job.state is State.LOADING:
        return "Loading the checkpoint"
    left = "" if job.remaining_s is None else f", {spell_seconds(job.remaining_s)} left"
    return f"Step {job.done} of {job.total}{left}"


def spell_seconds(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
