"""Tensors from a store by byte ranges: read in the background in the order they will be wanted, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from components import store
from components.errors import KinoflowError
from components.shards import Location

AHEAD_BYTES = 256 << 20
REQUESTS_IN_FLIGHT = 8
MAX_REQUEST_BYTES = 8 << 20
MAX_GAP_BYTES = 256 << 10
"""Ranges of one shard this close together become one request: skipping so little takes longer than reading it."""
MAX_ITEMS_AHEAD = 64
MAX_ITEMS_TOGETHER = 16

Label = TypeVar("Label")
Place = tuple[str, int, int, tuple[int, ...]]
"""URI, offset, size and shape: what tells tensors apart, also those without a byte."""


@dataclass(eq=False)
class _Slot:
    """A tensor that is held or on its way; `users` are the items ahead that want it."""

    location: Location
    users: int = 0
    tensor: Tensor | None = None
    error: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.tensor is not None or self.error is not None


@dataclass(eq=False)
class _Item(Generic[Label]):
    """Tensors that are wanted together."""

    label: Label
    slots: list[_Slot] = field(default_factory=list)
    is_requested: bool = False

    @property
    def different(self) -> list[_Slot]:
        return list(dict.fromkeys(self.slots))


class TensorReader(Generic[Label]):
    """Reads tensors at their locations, each checked against its SHA-256, and keeps those used last.

    `get` reads on demand. After `schedule`, `next` returns what was scheduled, item by item, while a thread plans the
    requests for what comes after and a few others read. Items planned together share requests. Use from one thread.

    Args:
        ahead_bytes: Limit of the tensors that are held or on their way, unless one item alone exceeds it; raw bytes
            of the requests in flight, 8 MiB each, come on top.
        requests_in_flight: At most.
    """

    def __init__(self, ahead_bytes: int = AHEAD_BYTES, requests_in_flight: int = REQUESTS_IN_FLIGHT) -> None:
        self._ahead_bytes = ahead_bytes
        self._changed = threading.Condition()
        self._slots: dict[Place, _Slot] = {}
        self._idle: OrderedDict[Place, _Slot] = OrderedDict()
        self._held_bytes = self._wanted_bytes = 0
        self._items: deque[_Item[Label]] = deque()
        self._is_wanted_now = self._is_planned = False
        self._plan_error: Exception | None = None
        self._generation = 0
        self._planner: threading.Thread | None = None
        self._pool = ThreadPoolExecutor(requests_in_flight, thread_name_prefix="kinoflow-read")

    @property
    def held_bytes(self) -> int:
        """Of the tensors that are held or on their way."""
        with self._changed:
            return self._held_bytes

    def get(self, locations: Sequence[Location]) -> list[Tensor]:
        """Tensors of these locations, read now; not to be changed in place.

        Raises:
            KinoflowError: A shard is missing or damaged, or the store cannot be read.
        """
        item: _Item[None] = _Item(None)
        with self._changed:
            missing = self._admit(item, locations)
        self._request(missing, [item])
        return self._take(item)

    def schedule(self, items: Iterable[tuple[Label, Sequence[Location]]]) -> None:
        """Begin to read these items in the background; an earlier schedule is dropped.

        Args:
            items: Taken lazily by a thread of the reader; a label comes back with its tensors.
        """
        self._drop_schedule()
        with self._changed:
            self._is_planned, self._plan_error = False, None
        self._planner = threading.Thread(
            target=self._plan, args=(iter(items), self._generation), name="kinoflow-read-ahead", daemon=True
        )
        self._planner.start()

    def next(self) -> tuple[Label, list[Tensor]] | None:
        """Label and tensors of the next scheduled item; None when all have been returned.

        Raises:
            KinoflowError: As `get`, or what the schedule itself raised.
        """
        with self._changed:
            self._is_wanted_now = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._items or self._is_planned or self._plan_error)
            if not self._items:
                if self._plan_error is not None:
                    raise self._plan_error
                return None
            item = self._items[0]
        try:
            tensors = self._take(item)
        finally:
            with self._changed:
                self._is_wanted_now = False
                self._items.popleft()
                self._changed.notify_all()
        return item.label, tensors

    def close(self) -> None:
        """End the threads and let go of every tensor."""
        self._drop_schedule()
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._changed:
            self._slots.clear()
            self._idle.clear()
            self._held_bytes = self._wanted_bytes = 0

    # --- planning ------------------------------------------------------------------------------------------------

    def _plan(self, items: Iterator[tuple[Label, Sequence[Location]]], generation: int) -> None:
        """The planner's thread: admit items while there is room, request what they lack a few items at a time."""
        together: list[_Item[Label]] = []
        missing: list[_Slot] = []
        limit = 1
        try:
            for label, locations in items:
                if not self._room_for(locations, generation, at_once=True):
                    self._request(missing, together)
                    missing, together = [], []
                    self._room_for(locations, generation)
                item = _Item(label)
                with self._changed:
                    if self._generation != generation:
                        return
                    missing += self._admit(item, locations)
                    self._items.append(item)
                    self._changed.notify_all()
                    is_awaited = self._is_wanted_now and not self._items[0].is_requested
                together.append(item)
                if is_awaited or len(together) >= limit:
                    self._request(missing, together)
                    missing, together, limit = [], [], min(2 * limit, MAX_ITEMS_TOGETHER)
        except Exception as error:
            with self._changed:
                if self._generation == generation:
                    self._plan_error = error
        finally:
            self._request(missing, together)
            with self._changed:
                if self._generation == generation:
                    self._is_planned = True
                self._changed.notify_all()

    def _room_for(self, locations: Sequence[Location], generation: int, *, at_once: bool = False) -> bool:
        """Whether there is room for one more item; waits for it unless `at_once`."""
        with self._changed:
            if at_once:
                return self._has_room(locations)
            self._changed.wait_for(lambda: self._generation != generation or self._has_room(locations))
            return True

    def _has_room(self, locations: Sequence[Location]) -> bool:
        """Whether one more item fits; one alone always does."""
        if not self._items:
            return True
        more = {_place(location): location.size_bytes for location in locations}
        for place in list(more):
            slot = self._slots.get(place)
            if slot is not None and slot.users:
                del more[place]
        return len(self._items) < MAX_ITEMS_AHEAD and self._wanted_bytes + sum(more.values()) <= self._ahead_bytes

    def _admit(self, item: _Item[Label] | _Item[None], locations: Sequence[Location]) -> list[_Slot]:
        """Give an item its slots, and return those that must be read; holds the lock."""
        missing: list[_Slot] = []
        for location in locations:
            place = _place(location)
            slot = self._slots.get(place)
            if slot is None:
                slot = self._slots[place] = _Slot(location)
                self._held_bytes += location.size_bytes
                missing.append(slot)
            if slot not in item.slots:
                if not slot.users:
                    self._idle.pop(place, None)
                    self._wanted_bytes += location.size_bytes
                slot.users += 1
            item.slots.append(slot)
        while self._held_bytes > self._ahead_bytes and self._idle:
            place, slot = self._idle.popitem(last=False)
            self._forget(place, slot)
        return missing

    def _drop_schedule(self) -> None:
        with self._changed:
            self._generation += 1
            self._changed.notify_all()
        if self._planner is not None:
            self._planner.join()
            self._planner = None
        with self._changed:
            while self._items:
                self._release(self._items.popleft())

    # --- reading -------------------------------------------------------------------------------------------------

    def _request(self, missing: Sequence[_Slot], items: Sequence[_Item[Label] | _Item[None]]) -> None:
        """Ask for everything that these items lack, neighbours at once."""
        for slots in joined(missing):
            self._pool.submit(self._read, slots)
        for item in items:
            item.is_requested = True

    def _read(self, slots: Sequence[_Slot]) -> None:
        """One request: the bytes from the first slot's to the last one's."""
        uri, start = slots[0].location.uri, slots[0].location.offset
        end = max(slot.location.offset + slot.location.size_bytes for slot in slots)
        tensors: list[Tensor | Exception]
        try:
            data = memoryview(store.read_range(uri, start, end - start))
            tensors = [_tensor(data, start, slot.location) for slot in slots]
        except Exception as error:
            tensors = [_sentence(uri, error)] * len(slots)
        with self._changed:
            for slot, tensor in zip(slots, tensors, strict=True):
                if isinstance(tensor, Tensor):
                    slot.tensor = tensor
                else:
                    slot.error = tensor
                if not slot.users:
                    self._rest(slot)
            self._changed.notify_all()

    def _take(self, item: _Item[Label] | _Item[None]) -> list[Tensor]:
        """The item's tensors, once all are there; the item then wants them no longer."""
        with self._changed:
            self._changed.wait_for(lambda: all(slot.is_done for slot in item.slots))
            error = next((slot.error for slot in item.slots if slot.error is not None), None)
            tensors = [slot.tensor for slot in item.slots if slot.tensor is not None]
            self._release(item)
        if error is not None:
            raise error
        return tensors

    def _release(self, item: _Item[Label] | _Item[None]) -> None:
        for slot in item.different:
            slot.users -= 1
            if not slot.users:
                self._wanted_bytes -= slot.location.size_bytes
                if slot.is_done:
                    self._rest(slot)

    def _rest(self, slot: _Slot) -> None:
        """Keep a tensor that no item ahead wants, as long as there is room; try again what failed."""
        place = _place(slot.location)
        if slot.error is not None or self._held_bytes > self._ahead_bytes:
            self._forget(place, slot)
        else:
            self._idle[place] = slot
            self._idle.move_to_end(place)

    def _forget(self, place: Place, slot: _Slot) -> None:
        if self._slots.pop(place, None) is not None:
            self._held_bytes -= slot.location.size_bytes


def joined(slots: Sequence[_Slot]) -> list[list[_Slot]]:
    """Slots that one request serves, the requests in the order in which they are wanted."""
    order = {id(slot): number for number, slot in enumerate(slots)}
    groups: list[list[_Slot]] = []
    start = end = 0
    for slot in sorted(slots, key=lambda slot: _place(slot.location)):
        location = slot.location
        after = location.offset + location.size_bytes
        is_near = groups and groups[-1][0].location.uri == location.uri and location.offset - end <= MAX_GAP_BYTES
        if is_near and after - start <= MAX_REQUEST_BYTES:
            groups[-1].append(slot)
            end = max(end, after)
        else:
            groups.append([slot])
            start, end = location.offset, after
    return sorted(groups, key=lambda group: min(order[id(slot)] for slot in group))


def _place(location: Location) -> Place:
    return location.uri, location.offset, location.size_bytes, location.shape


def _tensor(data: memoryview, start: int, location: Location) -> Tensor | Exception:
    first = location.offset - start
    try:
        return location.tensor(data[first : first + location.size_bytes])
    except KinoflowError as error:
        return error


def _sentence(uri: str, error: Exception) -> Exception:
    if isinstance(error, store.ObjectMissing):
        return KinoflowError(f"The shard {uri} is missing; make the bucket output again.")
    if isinstance(error, KinoflowError):
        return error
    return KinoflowError(f"The shard {uri} cannot be read: {error}.")
