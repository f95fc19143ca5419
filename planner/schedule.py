"""The schedule: the tasks of a plan in the zig-zag block order, with their dependencies and resources.

One generator serves the executor, which plays it on streams and threads, and the simulator, which plays it against a
profile. Tasks on one resource run in the order they are yielded; `deps` are the tasks of other resources to wait for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from planner.message_schedule import NO_SLOTS, Incoming, Outgoing
from planner.shape import BatchShape, Shape
from planner.sizes import ACTIVATION_SLOTS, WEIGHT_STAGING
from planner.tasks import PRELUDE, Ids, Resource, Slots, Task, TaskKind, Visit

__all__ = ["PRELUDE", "Resource", "Slots", "Task", "TaskKind", "tasks"]

Active = Callable[[int, Sequence[int]], Sequence[int]]


def tasks(shape: Shape, gen_len: int, active: Active | None = None) -> Iterator[Task]:
    """Every task of a block on one stage, in an order in which each lane may take its own.

    `active(i, ks)` names those of the gpu batches `ks`, a wave's, that token i is still generated for. It is asked
    just before the last task of the pass before is yielded, on a later stage after that pass's first layer. A token
    that none is generated for ends the block.
    """
    return _Generator(shape, gen_len, active or (lambda _, ks: ks)).run()


class _Generator:
    """The walk over i, waves, j, k; it remembers the last tasks that touched each slot and each home."""

    def __init__(self, shape: Shape, gen_len: int, active: Active) -> None:
        self.shape, self.gen_len, self.active = shape, gen_len, active
        self.num_layers, self.place = len(shape.layers), shape.place
        self.link = shape.compute_tier == "gpu"
        self.next_id = 0
        self.pending: list[Task] = []
        self.open: _Open | None = None
        self.weights = _Weights(self)
        self.incoming = Incoming(self.place, self.emit)
        self.outgoing = Outgoing(self.place, self.emit)
        self.cache_users: list[Ids] = [()] * shape.cache_slots
        self.activation_users: list[Ids] = [()] * ACTIVATION_SLOTS
        self.cache_stored: dict[tuple[int, int], Ids] = {}
        self.activation_stored: dict[int, Ids] = {}
        self.sampled: dict[int, Ids] = {}
        self.num_cached = self.num_activated = 0

    def run(self) -> Iterator[Task]:
        """One visit ahead: the loads of the next visit are yielded before the compute of this one where they may be."""
        self.weights.fill()
        visits = self._visits()
        visit = next(visits, None)
        loads = self._load(visit) if visit else None
        while visit and loads:
            following, upcoming = next(visits, None), None
            if following and self._may_precede(following, visit):
                upcoming = self._load(following)
            if self._is_attended(visit):
                self._compute_attended(visit, *loads)
            else:
                self._compute(visit, *loads)
            if following and not upcoming:
                upcoming = self._load(following)
            self.weights.load_part()
            yield from self.pending
            self.pending.clear()
            visit, loads = following, upcoming

    def _may_precede(self, following: Visit, visit: Visit) -> bool:
        """Whether a visit's loads need nothing of the visit before it.

        Of one gpu batch, hidden states are loaded only once they have been stored, a token is embedded once it is
        known, and a later stage's first layer takes what its prelude was sent with.
        """
        if self.open and following.k == self.open.visit.k:
            return False
        if following.k != visit.k:
            return True
        is_within = following.j > (PRELUDE if self.place.is_first else 0)
        return is_within and not self._moves_hidden(visit)

    def _passes(self) -> Iterator[tuple[int, list[int]]]:
        """(token, gpu batches) of each pass over the layers: wave by wave, token by token."""
        for i in range(self.gen_len):
            num_passes = 0
            for wave in self.shape.waves:
                ks = list(self.active(i, wave))
                if ks:
                    num_passes += 1
                    if not self.place.is_first:
                        self.incoming.expect(i, ks)
                    yield i, ks
            if not num_passes:
                return

    def _visits(self) -> Iterator[Visit]:
        """Stop by stop; a later stage looks one pass ahead, so that its messages come while it computes."""
        passes = self._passes()
        current = next(passes, None)
        while current:
            (i, ks), following = current, None
            for j, count in self._stops(i):
                for k in ks:
                    yield Visit(i, j, k, k == ks[0], k == ks[-1], count)
                if j == 0 and not self.place.is_first:
                    following = next(passes, None)
            current = next(passes, None) if self.place.is_first else following

    def _stops(self, i: int) -> Iterator[tuple[int, int]]:
        """(first, number) of the layers that a pass comes to, one by one or as one."""
        stop = self.num_layers + self.place.is_last
        if i and self.shape.joins_layers:
            yield from ((PRELUDE, 1), (0, self.num_layers), (self.num_layers, 1))
        else:
            yield from ((j, 1) for j in range(PRELUDE, stop))

    def _load(self, visit: Visit) -> tuple[Slots, Ids]:
        """Yield a visit's loads; its slots, and what its compute waits for."""
        is_layer = 0 <= visit.j < self.num_layers
        batch = self.shape.batches[visit.k]
        weight, deps = self.weights.use(visit) if is_layer else (-1, ())
        cache = activation = -1
        if is_layer and batch.stored_cache:
            cache, self.num_cached = self.num_cached % self.shape.cache_slots, self.num_cached + 1
        if self._has_hidden(visit) and self._moves_hidden(visit):
            activation, self.num_activated = self.num_activated % ACTIVATION_SLOTS, self.num_activated + 1
        slots = Slots(weight, -1, cache, activation)
        if self._is_sent(visit):
            outgoing, free = self.outgoing.slot()
            slots = slots._replace(outgoing=outgoing)
            deps += () if self.place.over_link else free
        if visit.j == PRELUDE:
            deps += self.sampled.pop(visit.k, ())
        if cache >= 0:
            deps += self._load_cache(visit, slots, batch)
        if self._is_received(visit):
            slots, arrived = self._receive(visit, slots)
            return slots, deps + arrived
        if activation >= 0:
            deps += self._load_activation(visit, slots, batch)
        return slots, deps

    def _has_hidden(self, visit: Visit) -> bool:
        """Whether hidden states are read or written; a later stage's prelude has none of its own."""
        return visit.j < self.num_layers and (visit.j != PRELUDE or self.place.is_first)

    def _moves_hidden(self, visit: Visit) -> bool:
        """Whether hidden states leave the compute tier: a prompt's may, one token's never do."""
        return visit.i == 0 and self.shape.batches[visit.k].stored_activation

    def _is_received(self, visit: Visit) -> bool:
        return visit.j == 0 and not self.place.is_first

    def _is_sent(self, visit: Visit) -> bool:
        return visit.j == self.num_layers - 1 and not self.place.is_last

    def _receive(self, visit: Visit, slots: Slots) -> tuple[Slots, Ids]:
        """Take a message; where the layer cannot read it there, it is copied to where hidden states are worked on."""
        incoming, ids = self.incoming.take(visit.i, visit.k)
        slots = slots._replace(incoming=incoming)
        if slots.activation >= 0:
            ids += self.activation_users[slots.activation]
        if self.place.over_link:
            ids = self.emit(TaskKind.RECEIVE, "h2d", visit, slots, ids)
            self.incoming.release(incoming, ids)
        return slots, ids

    def _load_cache(self, visit: Visit, slots: Slots, batch: BatchShape) -> Ids:
        free, stored = self.cache_users[slots.cache], self.cache_stored.get((visit.j, visit.k), ())
        if visit.i == 0:
            return free
        ids = free + stored
        if batch.disk_cache:
            ids = self.emit(TaskKind.LOAD_CACHE, "disk_read", visit, slots, ids)
        if self.link and batch.loaded_cache:
            ids = self.emit(TaskKind.LOAD_CACHE, "h2d", visit, slots, ids)
        return ids

    def _load_activation(self, visit: Visit, slots: Slots, batch: BatchShape) -> Ids:
        ids = self.activation_users[slots.activation]
        if visit.j == PRELUDE:
            return ids
        ids += self.activation_stored[visit.k]
        if batch.disk_activation:
            ids = self.emit(TaskKind.LOAD_ACTIVATION, "disk_read", visit, slots, ids)
        if self.link:
            ids = self.emit(TaskKind.LOAD_ACTIVATION, "h2d", visit, slots, ids)
        return ids

    def _compute(self, visit: Visit, slots: Slots, deps: Ids) -> None:
        """Yield a visit's compute and its stores."""
        done = self.emit(TaskKind.COMPUTE, "gpu" if self.link else "cpu", visit, slots, deps)
        self._pass_on(visit, slots, done)
        self._store_cache(visit, slots, done, done)
        self._leave(visit, done + self._finish_open())

    def _is_attended(self, visit: Visit) -> bool:
        """Whether the CPU attends rows in this visit."""
        is_layer = 0 <= visit.j < self.num_layers
        return visit.i > 0 and is_layer and self.shape.batches[visit.k].attended_cache

    def _compute_attended(self, visit: Visit, slots: Slots, deps: Ids) -> None:
        """Yield a visit's compute up to attention, attention on both devices, and the rest of the visit before it.

        So the GPU attends at the same time, and computes one gpu batch while the CPU attends for another. New K and V
        are written before attention.
        """
        num_parts = 2 + self.shape.batches[visit.k].near_cache
        begun = self.emit(TaskKind.COMPUTE, "gpu", visit, slots, deps, 0, num_parts)
        attended = self.emit(TaskKind.ATTEND, "cpu", visit, slots, begun)
        used = begun + attended
        if num_parts > 2:
            used += self.emit(TaskKind.COMPUTE, "gpu", visit, slots, begun, 1, num_parts)
        self._store_cache(visit, slots, begun, used)
        self._finish_open()
        self.open = _Open(visit, slots, attended, num_parts)
        if visit.last:
            self._finish_open()

    def _finish_open(self) -> Ids:
        """Yield the rest of the visit that the CPU attends for; nothing where there is none."""
        if self.open is None:
            return ()
        (visit, slots, attended, num_parts), self.open = self.open, None
        done = self.emit(TaskKind.COMPUTE, "gpu", visit, slots, attended, num_parts - 1, num_parts)
        self._pass_on(visit, slots, done)
        self._leave(visit, done)
        return done

    def _pass_on(self, visit: Visit, slots: Slots, done: Ids) -> None:
        """Yield the store of a visit's result, or its message; the next layer may be waiting for it."""
        batch = self.shape.batches[visit.k]
        if slots.incoming >= 0 and not self.place.over_link:
            self.incoming.release(slots.incoming, done)
        sent = self.outgoing.send(visit, slots, done) if slots.outgoing >= 0 else done
        if slots.activation >= 0:
            ids = sent
            if visit.j < self.num_layers - 1:  # the last layer's result goes to the head, or is sent, at once
                if self.link:
                    ids = self.emit(TaskKind.STORE_ACTIVATION, "d2h", visit, slots, done)
                if batch.disk_activation:
                    ids += self.emit(TaskKind.STORE_ACTIVATION, "disk_write", visit, slots, ids)
            self.activation_stored[visit.k] = self.activation_users[slots.activation] = ids

    def _store_cache(self, visit: Visit, slots: Slots, written: Ids, used: Ids) -> None:
        """What was `written` to the slot is stored; others may take it once it is no longer `used` either."""
        if slots.cache < 0:
            return
        batch, ids = self.shape.batches[visit.k], written
        if self.link and (visit.i == 0 or batch.loaded_cache):
            ids = self.emit(TaskKind.STORE_CACHE, "d2h", visit, slots, written)
        if batch.disk_cache:
            ids += self.emit(TaskKind.STORE_CACHE, "disk_write", visit, slots, ids)
        self.cache_stored[visit.j, visit.k] = ids
        self.cache_users[slots.cache] = ids + used

    def _leave(self, visit: Visit, done: Ids) -> None:
        """A visit's compute is done; with a layer's last one its weights may go."""
        if visit.last and 0 <= visit.j < self.num_layers:
            self.weights.release(visit.j, done)
        self._pass_ids(visit, done)

    def _pass_ids(self, visit: Visit, done: Ids) -> None:
        """The last stage sends what it sampled to the first, which embeds it in the next pass."""
        if self.place.is_first == self.place.is_last:
            return
        at_head = visit._replace(j=self.num_layers)
        if self.place.is_last and visit.j == self.num_layers:
            self.emit(TaskKind.SEND, "net_out", visit, NO_SLOTS, done)
        elif self.place.is_first and visit.j == self.num_layers - 1:
            self.sampled[visit.k] = self.emit(TaskKind.RECEIVE, "net_in", at_head, NO_SLOTS, ())

    def emit(
        self,
        kind: TaskKind,
        resource: Resource,
        visit: Visit,
        slots: Slots,
        deps: Ids,
        part: int = 0,
        num_parts: int = 1,
    ) -> Ids:
        """Queue one task; its id as a tuple."""
        if len(deps) > 1:
            deps = tuple(dict.fromkeys(deps))
        number, (i, j, k, _, _, num_layers) = self.next_id, visit
        self.pending.append(Task(number, kind, resource, i, j, k, slots, deps, part, num_parts, num_layers))
        self.next_id = number + 1
        return (number,)


class _Open(NamedTuple):
    """A visit whose compute has begun and goes on when the CPU has attended."""

    visit: Visit
    slots: Slots
    attended: Ids
    num_parts: int


class _Load(NamedTuple):
    """The weights of one layer, on their way into a slot part by part."""

    n: int
    visit: Visit
    slots: Slots
    deps: Ids
    num_parts: int


class _Weights:
    """The streamed layers of all passes in a row; the n-th of them takes slot n % weight_slots.

    A layer's parts are yielded one a visit, so that the cache loads between them do not wait for a whole layer;
    what is left of them when the layer is used is yielded then.
    """

    def __init__(self, generator: _Generator) -> None:
        self.generator, self.layers = generator, generator.shape.layers
        self.streamed = [j for j, layer in enumerate(self.layers) if layer.on_link or layer.on_disk]
        self.num_slots = generator.shape.weight_slots
        self.num_loaded = self.num_used = self.num_released = self.num_staged = 0
        self.loading: deque[_Load] = deque()
        self.num_done = 0  # parts of the first of `loading`
        self.ready: dict[int, Ids] = {}
        self.users: list[Ids] = [()] * self.num_slots
        self.staging_users: list[Ids] = [()] * WEIGHT_STAGING

    def fill(self) -> None:
        """Load the first layers, as many as there are slots."""
        for _ in range(self.num_slots):
            self._begin()
        while self.loading:
            self.load_part()

    def use(self, visit: Visit) -> tuple[int, Ids]:
        """A layer's slot (-1 if it is resident), and for its first gpu batch the load to wait for."""
        if not (self.layers[visit.j].on_link or self.layers[visit.j].on_disk):
            return -1, ()
        self.num_used += visit.first
        n = self.num_used - 1
        while self.loading and self.loading[0].n <= n:
            self.load_part()
        return n % self.num_slots, self.ready.pop(n) if visit.first else ()

    def release(self, j: int, done: Ids) -> None:
        """Layer j's last compute is queued: its slot takes the next layer that has none."""
        if self.layers[j].on_link or self.layers[j].on_disk:
            self.users[self.num_released % self.num_slots] = done
            self.num_released += 1
            self._begin()

    def _begin(self) -> None:
        """Start the next layer's load: its disk read is yielded at once."""
        n, emit = self.num_loaded, self.generator.emit
        num_waves = len(self.generator.shape.waves)
        if not self.streamed or n >= len(self.streamed) * self.generator.gen_len * num_waves:
            return
        self.num_loaded += 1
        num_passes, position = divmod(n, len(self.streamed))
        i = num_passes // num_waves
        j, slot, link = self.streamed[position], n % self.num_slots, self.generator.link
        visit, ids, staging = Visit(i, j, 0, True, False), self.users[slot], -1
        if self.layers[j].on_disk:
            if link:
                staging, self.num_staged = self.num_staged % WEIGHT_STAGING, self.num_staged + 1
            free = self.staging_users[staging] if link else ids
            ids += emit(TaskKind.LOAD_WEIGHT, "disk_read", visit, Slots(slot, staging, -1, -1), free)
        if link:
            parts = self.layers[j].num_parts
            self.loading.append(_Load(n, visit, Slots(slot, staging, -1, -1), ids, parts))
            self.ready[n] = ()
        else:
            self.ready[n] = ids

    def load_part(self) -> None:
        """Yield one part of the oldest load under way."""
        if not self.loading:
            return
        load = self.loading[0]
        ids = self.generator.emit(
            TaskKind.LOAD_WEIGHT, "h2d", load.visit, load.slots, load.deps, self.num_done, load.num_parts
        )
        self.ready[load.n] = ids  # one lane, in order: the last part is done when all are
        self.num_done += 1
        if self.num_done == load.num_parts:
            self.loading.popleft()
            self.num_done = 0
            if load.slots.staging >= 0:
                self.staging_users[load.slots.staging] = ids
