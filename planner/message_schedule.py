"""The messages of a stage's schedule: received as far ahead as there are slots, sent while it computes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from planner.shape import Place
from planner.tasks import Emit, Ids, Slots, TaskKind, Visit

NO_SLOTS = Slots(-1, -1, -1, -1)


class Incoming:
    """Messages from the stage before; the n-th of them takes slot n % incoming_slots."""

    def __init__(self, place: Place, emit: Emit) -> None:
        self.place, self.emit = place, emit
        self.num_posted = self.num_released = 0
        self.expected: deque[tuple[int, int]] = deque()
        self.ready: dict[tuple[int, int], tuple[int, Ids]] = {}
        self.users: list[Ids] = [()] * place.incoming_slots

    def expect(self, i: int, ks: Sequence[int]) -> None:
        """These gpu batches' hidden states come next."""
        self.expected.extend((i, k) for k in ks)
        self._post()

    def take(self, i: int, k: int) -> tuple[int, Ids]:
        """The slot of a gpu batch's hidden states, and what to wait for."""
        return self.ready.pop((i, k))

    def release(self, slot: int, done: Ids) -> None:
        """The slot is free once `done` is."""
        self.users[slot] = done
        self.num_released += 1
        self._post()

    def _post(self) -> None:
        """Receive what comes next into the slots that nobody else waits to read."""
        num_slots = self.place.incoming_slots
        while self.expected and self.num_posted < self.num_released + num_slots:
            (i, k), slot = self.expected.popleft(), self.num_posted % num_slots
            visit, slots = Visit(i, 0, k, False, False), NO_SLOTS._replace(incoming=slot)
            ids = self.emit(TaskKind.RECEIVE, "net_in", visit, slots, self.users[slot])
            self.ready[i, k] = slot, ids
            self.num_posted += 1


class Outgoing:
    """Messages to the next stage, or the last one's ids to the first; the n-th takes slot n % outgoing_slots."""

    def __init__(self, place: Place, emit: Emit) -> None:
        self.place, self.emit = place, emit
        self.num_sent = 0
        self.users: list[Ids] = [()] * place.outgoing_slots

    def slot(self) -> tuple[int, Ids]:
        """The next message's slot, and what to wait for before it is filled."""
        slot = self.num_sent % self.place.outgoing_slots
        self.num_sent += 1
        return slot, self.users[slot]

    def send(self, visit: Visit, slots: Slots, done: Ids) -> Ids:
        """Send what `done` computes; the last task that reads it where it was computed."""
        free = self.users[slots.outgoing]
        read = done
        if self.place.over_link:
            read = self.emit(TaskKind.SEND, "d2h", visit, slots, done + free)
        self.users[slots.outgoing] = self.emit(TaskKind.SEND, "net_out", visit, slots, read)
        return read
