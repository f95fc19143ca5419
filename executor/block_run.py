"""A block run: plays one block's tasks; each task of planner.schedule becomes one body in one lane."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from executor.allocations import Allocations
from executor.batching import Block
from executor.block import BatchState, CachePlace, batch_states
from executor.measure import Measurements
from executor.progress import Reporter
from executor.sampling import Sampler
from executor.transfer import Handle, Lanes, copy_bytes, copy_on_host
from planner.placement import group_tier
from planner.schedule import Task, TaskKind, tasks
from planner.shape import shape_of


class BlockRun:
    """One block: plays its tasks, and accepts each token's ids one pass later, so that no lane waits for the host."""

    def __init__(
        self,
        held: Allocations,
        block: Block,
        samplers: Sequence[Sampler],
        reporter: Reporter,
        measurements: Measurements,
    ) -> None:
        self.held, self.reporter, self.measurements = held, reporter, measurements
        self.states = batch_states(block, list(samplers), held.sizes, held.token_ids(), held.options.device)
        self.sizes = held.sizes.of_rows([state.num_rows for state in self.states])
        self.shape = shape_of(self.sizes)
        self.lanes = Lanes(held.streams, overlap=held.options.overlap, delay=held.options.delay)
        self.bringers: dict[tuple[int, int], Handle] = {}
        """By token and gpu batch, the task after which its ids are known here."""
        self.finals: dict[tuple[int, int], Handle] = {}
        """Likewise the task with which this stage is done with a token."""
        self.unfinished = [True] * len(self.states)

    def play(self) -> None:
        """The tasks of the block: every task of the schedule into its lane; the compute tasks are done here."""
        measurements = self.measurements
        measurements.start_block(self.held.options.device, self.lanes.forget)
        self.held.compute.start_block(self.states)
        gen_len = max(state.batch.gen_len for state in self.states)
        for task in filter(self.wanted, tasks(self.shape, gen_len, self.active)):
            handle = self.lanes.submit(task, self.body(task), self.meeting(task))
            measurements.add(handle)
            if (i := self.shape.ids_known_after(task)) is not None:
                self.bringers[i, task.k] = handle
            if self.shape.is_final(task):
                self.finals[task.i, task.k] = handle
        for i, k in sorted({*self.bringers, *self.finals}):
            self._accept(i, [k])
        self.lanes.failure.check()
        measurements.finish_block()

    def wanted(self, task: Task) -> bool:
        """Whether to do a task; all of them."""
        return True

    def active(self, i: int, ks: Sequence[int]) -> Sequence[int]:
        """Of these gpu batches, those that token i is generated for, as far as the tokens before i - 1 tell.

        Every stage of a pipeline is asked at its own time and comes to the same answer.
        """
        self._accept(i - 2, ks)
        return [k for k in ks if self.unfinished[k] and i < self.states[k].batch.gen_len]

    def _accept(self, i: int, ks: Sequence[int]) -> None:
        """Wait for token i's ids of these gpu batches and hand them to the samplers."""
        for k in ks:
            state = self.states[k]
            bringer, final = self.bringers.pop((i, k), None), self.finals.pop((i, k), None)
            for handle in (bringer, final):
                if handle:
                    handle.wait()
            self.lanes.failure.check()
            if bringer:
                if i == 0:
                    self.reporter.advance("prefill", sum(len(r.prompt_ids) for r in state.batch.requests))
                self.reporter.advance("decode", state.sampler.finished.count(False))
                self.unfinished[k] = state.sampler.accept(state.sampled(i).tolist())
            if final:
                self.measurements.token_done(final, state.num_rows * state.num_new(i))

    def meeting(self, task: Task) -> Callable[[], None] | None:
        """What waits for another stage before the task begins."""
        is_message = task.kind in {TaskKind.SEND, TaskKind.RECEIVE}
        return self.held.mail.meeting(task) if is_message else None

    def body(self, task: Task) -> Callable[[], int]:
        """What the task does, in its lane."""
        match task.kind, task.resource:
            case TaskKind.LOAD_WEIGHT, "disk_read":
                return lambda: self.held.weights.read_disk(task.j, task.slots)
            case TaskKind.LOAD_WEIGHT, _:
                return lambda: self.held.weights.copy_to_slot(task)
            case ((TaskKind.COMPUTE | TaskKind.ATTEND), _):
                return lambda: self._compute(task)
            case ((TaskKind.LOAD_CACHE | TaskKind.STORE_CACHE), _):
                return lambda: self._move_cache(task)
            case ((TaskKind.SEND | TaskKind.RECEIVE), _):
                return lambda: self.held.mail.carry(task, self.states[task.k])
            case _:
                return lambda: self._move_activation(task)

    def _compute(self, task: Task) -> int:
        if task.kind is TaskKind.ATTEND:
            return self.held.compute.attend(task)
        self.held.compute.run(task, self.states[task.k])
        return 0

    def _move_cache(self, task: Task) -> int:
        """Tokens of a gpu batch's rows between a cache slot, the host buffer of disk rows, and the homes."""
        total = 0
        for source, target in self._cache_copies(task):
            if task.resource in ("h2d", "d2h"):
                copy_bytes(target, source)
            total += source.numel()
        return total

    def _cache_copies(self, task: Task) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(source, target) of each group a task moves; disk tasks do their I/O here and yield the bytes."""
        state, file = self.states[task.k], self.held.caches.file
        loading, past = task.kind is TaskKind.LOAD_CACHE, state.past(task.i)
        start, stop = (0, past) if loading else (past, past + state.num_new(task.i))
        for place in self._cache_places(task, state):
            far = place.far.token_bytes(start, stop)
            if task.resource in ("h2d", "d2h"):
                if place.near is not None:
                    near = place.near.token_bytes(start, stop)
                    yield (far, near) if loading else (near, far)
            elif place.file_offset is not None:
                offset = place.file_offset + place.far.places(start, stop).start * place.far.stride
                assert file is not None
                (file.read if loading else file.write)(offset, far)
                yield far, far

    def _cache_places(self, task: Task, state: BatchState) -> list[CachePlace]:
        """Where the groups of a gpu batch are copied from and to; in decode the same for every token."""
        if task.i == 0:
            return list(self._all_cache_places(task, state))
        key = task.j, task.slots.cache
        if key not in state.decode_places:
            state.decode_places[key] = list(self._all_cache_places(task, state))
        return state.decode_places[key]

    def _all_cache_places(self, task: Task, state: BatchState) -> Iterator[CachePlace]:
        caches, rows, slot, prefill = self.held.caches, state.cache_rows, task.slots.cache, task.i == 0
        length = state.batch.prompt_len if prefill else self.sizes.workload.max_len
        in_slot = caches.in_slot(task.j, slot, rows, length, prefill=prefill)
        staged = caches.in_staging(task.j, slot, rows)
        for group, count in rows.counts():
            near = in_slot.get(group)
            if count and group_tier(group) == "disk":
                offset = caches.disk_offset(task.j, task.k, group)
                yield CachePlace(near, staged[group] if staged else in_slot[group], offset)
            elif count and near is not None:
                yield CachePlace(near, caches.home(task.j, task.k, group, count), None)

    def _move_activation(self, task: Task) -> int:
        """A gpu batch's hidden states between an activation slot, the host buffer of disk rows, and the homes."""
        state, activations = self.states[task.k], self.held.activations
        rows, num_new, loading = (
            state.activation_rows,
            state.num_new(task.i),
            task.kind is TaskKind.LOAD_ACTIVATION,
        )
        slot, total = task.slots.activation, 0
        on_disk_lane = task.resource in ("disk_read", "disk_write")
        if on_disk_lane and loading:
            total += self._disk_activation(task)
        if not on_disk_lane or self.sizes.compute_tier == "cpu":
            for working, home in activations.parts(task.k, slot, rows, num_new):
                source, target = (home, working) if loading else (working, home)
                if self.sizes.compute_tier == "cpu":
                    copy_on_host(target, source)
                else:
                    target.copy_(source, non_blocking=True)
                total += source.nbytes
        if on_disk_lane and not loading:
            total += self._disk_activation(task)
        return total

    def _disk_activation(self, task: Task) -> int:
        state, activations = self.states[task.k], self.held.activations
        offset, data = activations.disk_piece(
            task.k, task.slots.activation, state.activation_rows, state.num_new(task.i)
        )
        assert activations.file is not None
        loading = task.kind is TaskKind.LOAD_ACTIVATION
        (activations.file.read if loading else activations.file.write)(offset, data)
        return data.numel()
