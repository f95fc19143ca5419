"""Task costs: the work of each single task of a schedule, by the formulas of cost.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from planner.cost import CostModel
from planner.heat import cooled
from planner.held import first_of_waves, held_by_batches
from planner.message_costs import message_moves
from planner.piece import NOTHING, Piece
from planner.rates import Rates
from planner.schedule import PRELUDE, Task, TaskKind
from planner.sizes import Sizes
from planner.work import Choice, Compute, Held, Move, step_of

SHARED_LANES = ("disk", "link", "cpu_mem", "cores")
"""What tasks of different lanes have in common; names of cost.py's lanes."""
_HEAD = -2


class Load(NamedTuple):
    """What one task asks of its lane, and of what lanes share."""

    seconds: float
    num_bytes: float
    shares: tuple[float, ...]
    """Of each of SHARED_LANES, as long as the task runs at its own speed."""
    is_blocking: bool
    """The caller's thread does it: nothing later is issued before."""
    issue_s: float = 0.0
    """What the caller's thread takes to ask a GPU for it, and for the copies that belong to it."""
    yields: bool = False
    """Others come first where what they share is full: the disk's tasks, which wait for the device most of the time."""


Group = tuple[tuple[int, float], ...]
"""Layers that are played as one, and how much of each."""
Loads = dict[tuple[TaskKind, str, int], Load]
"""By (kind, resource, part of a compute task), of one gpu batch in one pass of one layer."""


class TaskCosts:
    """The loads of a plan's tasks, alike ones computed once."""

    def __init__(self, sizes: Sizes, rates: Rates) -> None:
        self.sizes = sizes
        self.cost = CostModel(
            model=sizes.model,
            workload=sizes.workload,
            choice=Choice.of(sizes.policy),
            compute_tier=sizes.compute_tier,
            rates=cooled(rates, sizes),
        )
        specs = [(id(layer), j in sizes.graphs.layers) for j, layer in enumerate(sizes.model.layers)]
        kinds = [(id(slabs), spec) for slabs, spec in zip(sizes.slabs, specs, strict=True)]
        self.layer_kinds = [kinds.index(kind) for kind in kinds]
        """Of each layer, the same for those that are alike, placed alike, and replayed or not."""
        self._specs = {j: specs.index(spec) for j, spec in enumerate(specs)}
        self._specs |= {PRELUDE: PRELUDE, len(kinds): _HEAD}
        firsts = first_of_waves(sizes)  # these do the pass's own work
        rows = zip(sizes.placement.cache_rows, sizes.placement.activation_rows, strict=True)
        alike = [(k in firsts, k in sizes.graphs.batches, row) for k, row in enumerate(rows)]
        self.batch_kinds = [alike.index(each) for each in alike]
        """Of each gpu batch, the same for alike ones."""
        self._held: dict[tuple[int, int], Held[float]] = {}
        self._passes: dict[tuple[int, int, int], Loads] = {}
        self._weights: dict[int, Loads] = {}
        self._moves: dict[Move[float], Load] = {}

    def load(self, task: Task, i: int, layers: Group) -> Load:
        """The load of a task, taken as one of token i and of some layers together; a message is of the first."""
        if len(layers) == 1 or task.kind in (TaskKind.SEND, TaskKind.RECEIVE):
            load = self._of_layer(task, i, layers[0][0])
        else:
            load = _together([(self._of_layer(task, i, j), part) for j, part in layers])
        if task.kind is TaskKind.COMPUTE or task.num_parts == 1:
            return load
        seconds, num_bytes = load.seconds / task.num_parts, load.num_bytes / task.num_parts
        return Load(seconds, num_bytes, load.shares, load.is_blocking)

    def _of_layer(self, task: Task, i: int, j: int) -> Load:
        if task.kind is TaskKind.LOAD_WEIGHT:
            loads = self._weight_loads(self.layer_kinds[j], task.k)
        else:
            key = i, self._specs[j], self.batch_kinds[task.k]
            known = self._passes.get(key)
            if known is None:
                known = self._passes[key] = self._loads(*key)
            loads = known
        return loads[task.kind, task.resource, task.part if task.kind is TaskKind.COMPUTE else 0]

    def _weight_loads(self, j: int, first: int) -> Loads:
        """Of a layer's weights, for a gpu batch that a pass begins with; for every token the same."""
        if j not in self._weights:
            moves = self.cost.moves(held_by_batches(self.sizes, j, (first,)), step_of(self.sizes.workload, 0))
            weights = (move for move in moves if move.kind is TaskKind.LOAD_WEIGHT)
            self._weights[j] = {(move.kind, move.resource, 0): self._moved(move) for move in weights}
        return self._weights[j]

    def _loads(self, i: int, j: int, k: int) -> Loads:
        cost, step = self.cost, step_of(self.sizes.workload, i)
        layer = max(j, 0)  # the embedding stores what a layer stores
        if (layer, k) not in self._held:
            self._held[layer, k] = held_by_batches(self.sizes, layer, (k,))
        held = self._held[layer, k]
        rows = self.sizes.placement.cache_rows[k].total
        moves = [*cost.moves(held, step), *message_moves(self.sizes.messages, rows, step, 1.0)]
        loads = {(move.kind, move.resource, 0): self._moved(move) for move in moves}
        if j >= 0:
            compute = cost.compute(self.sizes.model.layers[j], held, step)
            if not cost.rates.on_cpu:
                compute = replace(compute, issue_s=cost.issued(moves, compute))
            if compute.attend_count:
                loads[TaskKind.ATTEND, "cpu", 0] = self._attended(compute, cost.attended_bytes(held, step))
        else:
            compute = _end(cost.ends(step, self.sizes.graphs.share_of_ends((k,)))[j == _HEAD])
        for number, part in enumerate(_parts(compute)):
            loads[TaskKind.COMPUTE, cost.compute_tier, number] = self._computed(part)
        return loads

    def _moved(self, move: Move[float]) -> Load:
        """Most passes make the same moves."""
        if move not in self._moves:
            [timed] = self.cost.timed([move], self.cost.speeds([move]))
            shares = _shares(self.cost.lanes([timed], _NO_COMPUTE), timed.seconds)
            yields = move.resource in ("disk_read", "disk_write")
            self._moves[move] = Load(timed.seconds, move.num_bytes, shares, False, yields=yields)
        return self._moves[move]

    def _computed(self, compute: Compute[float]) -> Load:
        """All but the CPU's attention."""
        alone = replace(compute, attend_s=0.0, attend_count=0.0, num_parts=0.0, attend_bytes=0.0)
        seconds = compute.linear_s + compute.near_s
        shares = _shares(self.cost.lanes([], alone), seconds)
        return Load(seconds, compute.num_bytes, shares, self.cost.rates.on_cpu, compute.issue_s)

    def _attended(self, compute: Compute[float], num_bytes: float) -> Load:
        """The CPU's attention alone."""
        alone = replace(_NO_COMPUTE, attend_s=compute.attend_s, attend_bytes=compute.attend_bytes)
        shares = _shares(self.cost.lanes([], alone), compute.attend_s)
        return Load(compute.attend_s, num_bytes, shares, self.cost.rates.on_cpu)


def _together(loads: Sequence[tuple[Load, float]]) -> Load:
    """Parts of several loads, one after the other: of what lanes share they take what they take on average."""
    seconds = sum(load.seconds * part for load, part in loads)
    shares = (
        sum(load.shares[at] * load.seconds * part for load, part in loads) for at in range(len(SHARED_LANES))
    )
    return Load(
        seconds,
        sum(load.num_bytes * part for load, part in loads),
        tuple(share / seconds if seconds else 0.0 for share in shares),
        any(load.is_blocking for load, _ in loads),
        sum(load.issue_s * part for load, part in loads),
        any(load.yields for load, _ in loads),
    )


def _parts(compute: Compute[float]) -> list[Compute[float]]:
    """Of one gpu batch's compute: half of the products, near attention if other rows are the CPU's, the other half."""
    count = 1 + round(compute.num_parts)
    if count == 1:
        return [compute]
    issue_s, num_bytes = compute.issue_s / count, compute.num_bytes / count
    part = replace(compute, linear_s=0.0, near_s=0.0, issue_s=issue_s, num_bytes=num_bytes)
    half, near = replace(part, linear_s=compute.linear_s / 2), replace(part, near_s=compute.near_s)
    return [half, near, half] if count > 2 else [half, half]


def _shares(lanes: Iterable[tuple[str, float]], seconds: float) -> tuple[float, ...]:
    found = dict(lanes)
    return tuple(found.get(name, 0.0) / seconds if seconds > 0 else 0.0 for name in SHARED_LANES)


def _end(piece: Piece) -> Compute[float]:
    """The embedding or the head, as a compute task without attention."""
    return Compute(
        count=1.0,
        linear_s=piece.seconds,
        first_s=0.0,
        issue_s=piece.issue_s,
        near_s=0.0,
        attend_s=0.0,
        attend_count=0.0,
        num_parts=0.0,
        flops=piece.flops,
        num_bytes=piece.num_bytes,
        attend_bytes=0.0,
    )


_NO_COMPUTE = _end(NOTHING)
