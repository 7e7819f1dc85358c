"""The left side of the page: what to draw, how, and from which checkpoint."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nicegui import events, run, ui
from pydantic import ValidationError

from components.errors import KinoflowError
from components.generation.settings import GenerationConfig
from components.studio.choices import ASPECTS, OWN_SIZE, Choice, Start, size_names
from components.studio.orders import MAX_SEED, TASKS, Order, Slot, Wish, make_order, random_seed
from components.studio.uploads import Upload, keep_upload

METHODS = {"own": "The checkpoint's own", "dpm-solver++": "DPM-Solver++ (fast)"}
KINDS = {"mp4": "MP4", "gif": "GIF"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class UploadRules:
    """Where uploads go and how large they may be."""

    folder: Path
    limit_bytes: int


class Controls:
    """The form; `orders()` reads it.

    Args:
        choices: the checkpoints on offer.
        rules: for uploads.
        say: shows a sentence to the person.
    """

    def __init__(self, choices: Sequence[Choice], rules: UploadRules, say: Say) -> None:
        self._choices = {choice.label: choice for choice in choices}
        self._rules, self._say = rules, say
        self.wish = Wish(seed=random_seed())
        self.comparing = False
        self._uploads: dict[str, Upload] = {}
        labels = list(self._choices)
        self._chosen: list[str | None] = [labels[0] if labels else None, labels[1] if len(labels) > 1 else None]
        self._started = False
        self._build()
        self._begin_with_checkpoint()

    def orders(self) -> list[Order]:
        """One order, or the same one for both checkpoints.

        Raises:
            KinoflowError, pydantic.ValidationError: the first thing that is missing or wrong.
        """
        wanted = self._chosen if self.comparing else self._chosen[:1]
        picked = [self._choices.get(label or "") for label in wanted]
        if None in picked:
            raise KinoflowError("No checkpoint is chosen; train one (`make demo`), or start with --checkpoint.")
        if len(set(wanted)) < len(wanted):
            raise KinoflowError("Both sides are the same checkpoint; choose two to compare.")
        return [make_order(self.wish, choice, self._uploads) for choice in picked if choice]

    def offer(self, choices: Sequence[Choice]) -> None:
        """Change the checkpoints on offer; what is chosen stays chosen."""
        if [*self._choices.values()] == list(choices):
            return
        self._choices = {choice.label: choice for choice in choices}
        labels = list(self._choices)
        for side, select in enumerate(self._selects):
            if self._chosen[side] not in self._choices and len(labels) > side:
                self._chosen[side] = labels[side]
            select.set_options(labels, value=self._chosen[side])
        if not self._started and labels:
            self._begin_with_checkpoint()

    def take_over(self, wish: Wish) -> None:
        """Show other settings."""
        self.wish.__dict__.update(replace(wish).__dict__)
        self._show_task()

    def _build(self) -> None:
        ui.toggle({False: "Create", True: "Compare"}, value=False, on_change=self._mode_changed).props(
            "unelevated no-caps spread toggle-color=secondary data-testid=mode"
        ).classes("mode")
        self._build_checkpoints()
        self._build_words()
        self._build_references()
        self._build_size()
        self._build_sampling()

    def _build_checkpoints(self) -> None:
        self._selects = []
        for side, label in enumerate(("Checkpoint", "Second checkpoint")):
            select = ui.select(
                list(self._choices), value=self._chosen[side], label=label,
                on_change=lambda event, side=side: self._checkpoint_changed(side, event.value),
            )  # fmt: skip
            self._selects.append(select.props(f"outlined dense options-dense data-testid=checkpoint{side + 1}"))
        self._selects[1].bind_visibility_from(self, "comparing")

    def _build_words(self) -> None:
        tasks = {name: task.label for name, task in TASKS.items()}
        task = ui.select(tasks, label="Task").bind_value(self.wish, "task")
        task.props("outlined dense options-dense data-testid=task")
        self._hint = ui.label().classes("hint")
        task.on_value_change(self._show_task)
        prompt = ui.textarea("Prompt", placeholder="a red circle moves left on a white background")
        prompt.bind_value(self.wish, "prompt").props("outlined autogrow data-testid=prompt")
        avoid = ui.input("Negative prompt", placeholder="what should not be seen")
        avoid.bind_value(self.wish, "negative_prompt").props("outlined dense data-testid=negative")

    def _build_references(self) -> None:
        self._references = ui.row().classes("slots")
        ratio = _number("Edit ratio", 0.05, step=0.05, maximum=1).bind_value(self.wish, "edit_ratio")
        ratio.bind_visibility_from(self.wish, "task", value="edit")

    def _build_size(self) -> None:
        with ui.row().classes("pair"):
            self._size = ui.select({}, label="Size").props("outlined dense options-dense")
            aspect = ui.select(list(ASPECTS), label="Aspect").bind_value(self.wish, "aspect")
            aspect.props("outlined dense options-dense")
            aspect.bind_enabled_from(self.wish, "size", backward=lambda size: size != OWN_SIZE)
        with ui.row().classes("pair") as own:
            height = _number("Height in pixels", 8).bind_value(self.wish, "height")
            width = _number("Width in pixels", 8).bind_value(self.wish, "width")
        own.bind_visibility_from(self.wish, "size", value=OWN_SIZE)
        with ui.row().classes("pair"):
            length = _number("Length in frames", 1).bind_value(self.wish, "num_frames")
            rate = _number("Frames per second", 1).bind_value(self.wish, "saved_fps")
        self._measures = ui.label().classes("hint").props("data-testid=measures")
        for field in (self._size, aspect, height, width, length, rate):
            field.on_value_change(self._show_size)

    def _build_sampling(self) -> None:
        with ui.row().classes("pair"):
            _number("Steps", 1).bind_value(self.wish, "steps").props("data-testid=steps")
            _number("Guidance", 0, step=0.5).bind_value(self.wish, "guidance_scale").props("data-testid=guidance")
        with ui.row().classes("pair seed"):
            seed = _number("Seed", 0, maximum=MAX_SEED).bind_value(self.wish, "seed").props("data-testid=seed")
            dice = ui.button(icon="casino", on_click=lambda: seed.set_value(random_seed()))
            dice.props('flat data-testid=dice aria-label="Another seed"').tooltip("Another seed")
        with ui.expansion("More").props("dense dense-toggle").classes("more"):
            method = ui.select(METHODS, label="Method").bind_value(self.wish, "method")
            method.props("outlined dense options-dense data-testid=method")
            loops = _number("Clips in a row", 1).bind_value(self.wish, "loops").props("data-testid=loops")
            loops.tooltip("Each goes on where the one before ended: longer videos at the same memory.")
            loops.on_value_change(self._show_size)
            with ui.row().classes("pair"):
                _number("Frame rate told", 1).bind_value(self.wish, "fps").tooltip("What the network is told.")
                kind = ui.select(KINDS, label="File").bind_value(self.wish, "kind")
                kind.props("outlined dense options-dense")

    def _mode_changed(self, event: events.ValueChangeEventArguments[bool]) -> None:
        self.comparing = event.value

    def _checkpoint_changed(self, side: int, label: str) -> None:
        before, self._chosen[side] = self._chosen[side], label
        if side == 0 and before != label:
            self._begin_with_checkpoint()

    def _begin_with_checkpoint(self) -> None:
        choice = self._choices.get(self._chosen[0] or "")
        self._started = choice is not None
        start = choice.start if choice else Start()
        self.wish.begin_with(start)
        names = {name: "Own pixels" if name == OWN_SIZE else name for name in size_names(start)}
        self._size.set_options(names, value=self.wish.size)
        self._size.bind_value(self.wish, "size")
        self._show_task()

    def _show_size(self) -> None:
        try:
            height, width = self.wish.pixels()
            length = GenerationConfig(num_frames=int(self.wish.num_frames or 0), loops=int(self.wish.loops or 1))
            seconds = length.video_frames / float(self.wish.saved_fps or 1)
        except (KinoflowError, ValidationError):
            self._measures.set_text("")
            return
        self._measures.set_text(f"{width} × {height} pixels, {seconds:.1f} s")

    def _show_task(self) -> None:
        task = TASKS[self.wish.task]
        self._hint.set_text(task.hint)
        self._references.clear()
        self._references.set_visibility(bool(task.slots))
        with self._references:
            for slot in task.slots:
                self._build_slot(slot)
        self._show_size()

    def _build_slot(self, slot: Slot) -> None:
        with ui.column().classes("slot"):
            upload = ui.upload(
                label=slot.label, auto_upload=True, max_files=1, max_file_size=self._rules.limit_bytes,
                on_rejected=lambda: self._say(f"At most {self._rules.limit_bytes / 1e6:.0f} MB can be uploaded."),
            )  # fmt: skip
            upload.props(f'accept="image/*,video/*,.mkv" flat bordered data-testid=upload-{slot.key}')
            picture = ui.image().classes("preview").props("no-spinner fit=contain")
        upload.on_upload(lambda event: self._uploaded(slot, event, upload, picture))
        kept = self._uploads.get(slot.key)
        picture.set_visibility(kept is not None)
        if kept is not None:
            picture.set_source(kept.preview)

    async def _uploaded(
        self, slot: Slot, event: events.UploadEventArguments, upload: ui.upload, picture: ui.image
    ) -> None:
        incoming = self._rules.folder / f"incoming-{uuid.uuid4().hex}"
        self._uploads.pop(slot.key, None)
        upload.reset()
        try:
            self._rules.folder.mkdir(parents=True, exist_ok=True)
            await event.file.save(incoming)
            kept = await run.io_bound(
                keep_upload, incoming, event.file.name, self._rules.folder, self._rules.limit_bytes
            )
        except KinoflowError as error:
            picture.set_visibility(False)
            self._say(str(error))
            return
        if kept is None:  # the server is being stopped
            return
        self._uploads[slot.key] = kept
        picture.set_source(kept.preview)
        picture.set_visibility(True)


def _number(label: str, minimum: float, *, step: float = 1, maximum: float | None = None) -> ui.number:
    return ui.number(label, min=minimum, max=maximum, step=step).props("outlined dense")
