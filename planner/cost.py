"""Cost: the work of each task on each resource, explained in docs/cost-model.md. Formulas stand here and in
cost_compute.py and in packed_work.py, nowhere else.

Whatever a policy's splits decide comes in as amounts, and the formulas use only + and * on those, so that an
amount may be a number or a linear expression of an LP. The caller takes the largest lane, or adds one
constraint for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add

from planner.cost_compute import ComputeCost
from planner.factors import CONTENTION
from planner.layout import DTYPE_BYTES, kv_vector_bytes
from planner.model import LayerSpec, ModelSpec
from planner.piece import Piece
from planner.policy import Tier
from planner.rate_curve import Curve
from planner.rates import Rates
from planner.schedule import TaskKind
from planner.work import A, Choice, Compute, Held, Move, Step, Timed
from planner.workload import Workload

ROUNDS = "rounds"
"""The lane of what gpu batches take one after another by way of their cache slots."""
SHARED: Mapping[str, tuple[str, ...]] = {
    "disk": ("disk_read", "disk_write"),
    "link": ("h2d", "d2h"),
    "cores": ("gpu", "cpu", "h2d", "d2h", "disk_read", "disk_write"),
    ROUNDS: ("gpu", "cpu", "h2d", "disk_read"),
}
"""Lanes that several resources have in common; the busiest of them is said to bind."""
HOST = "host"
"""The lane of the thread that issues a GPU's work."""
COPY_CALLS = 0.32
"""What the engine does to issue a copy over the link (events, waits, views), in calls of a small layer: 0.16 to 0.2 ms
on H200 hosts."""
_COPIES = ("h2d", "d2h", "disk_read", "disk_write", "net_in", "net_out")
_BY_THREADS = frozenset(_COPIES[2:])
"""Copies that threads of their own make."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The formulas for one model, workload and choice on one machine."""

    model: ModelSpec
    workload: Workload
    choice: Choice
    compute_tier: Tier
    rates: Rates
    rows: float | None = None
    """Sequences of a gpu batch; None: as many as chosen."""

    @property
    def element_bytes(self) -> int:
        """Of the model's dtype."""
        return DTYPE_BYTES[self.model.dtype]

    @property
    def token_bytes(self) -> int:
        """K and V of one token of one sequence in one layer, in the cache's bits."""
        return 2 * kv_vector_bytes(self.model, self.choice.kv_bits, self.element_bytes)

    @cached_property
    def computing(self) -> ComputeCost:
        """The formulas of the compute tasks."""
        return ComputeCost(
            model=self.model,
            choice=self.choice,
            compute_tier=self.compute_tier,
            rates=self.rates,
            rows=self.choice.gpu_batch_size if self.rows is None else self.rows,
        )

    def compute(self, layer: LayerSpec, held: Held[A], step: Step) -> Compute[A]:
        """The compute of one pass of one layer."""
        return self.computing.layer(layer, held, step)

    def ends(self, step: Step, replayed: float) -> tuple[Piece, Piece]:
        """The compute of one gpu batch's embedding and of its head, their seconds calibrated.

        In decode both are replayed as graphs for this share of the gpu batches.
        """
        key = step.phase, step.num_new, step.eager, step.captured, replayed
        if key not in self._known_ends:
            embedding, head = self.computing.ends(step, replayed)
            self._known_ends[key] = (
                self._calibrated(embedding, step.phase),
                self._calibrated(head, step.phase),
            )
        return self._known_ends[key]

    @cached_property
    def _known_ends(self) -> dict[tuple[str, float, float, float, float], tuple[Piece, Piece]]:
        """By what they depend on of a step."""
        return {}

    def _calibrated(self, piece: Piece, kind: str) -> Piece:
        issued = 0.0 if self.rates.on_cpu else piece.issue_s
        return Piece(self.computing.seconds(piece, kind), piece.flops, piece.num_bytes, issued)

    def attended_bytes(self, held: Held[A], step: Step) -> A:
        """K and V, as they are cached, that the CPU attends to in one decode pass of one layer."""
        return held.attended_token_bytes * step.attended(held.kept_tokens)

    def moves(self, held: Held[A], step: Step) -> list[Move[A]]:
        """Every copy of one pass of one layer."""
        moves = [
            *self._weight_moves(held),
            *self._activation_moves(held, step),
            *self._cache_moves(held, step),
        ]
        return [move for move in moves if self.compute_tier == "gpu" or move.resource not in ("h2d", "d2h")]

    def _weight_moves(self, held: Held[A]) -> list[Move[A]]:
        load, counts = TaskKind.LOAD_WEIGHT, held.counts
        both = held.cpu_weight_bytes + held.disk_weight_bytes
        return [
            Move(
                kind=load, resource="disk_read", count=counts.disk_weights, num_bytes=held.disk_weight_bytes
            ),
            Move(kind=load, resource="h2d", count=counts.link_weights, num_bytes=both),
        ]

    def _activation_moves(self, held: Held[A], step: Step) -> list[Move[A]]:
        """Of prompts: one token's hidden states stay on the compute tier."""
        if step.phase == "decode":
            return []
        row = step.num_new * self.model.hidden_size * self.element_bytes
        moved, on_disk = held.moved_rows * row, held.disk_rows * row
        load, store, counts = TaskKind.LOAD_ACTIVATION, TaskKind.STORE_ACTIVATION, held.counts
        return [
            Move(kind=load, resource="disk_read", count=counts.disk_activations, num_bytes=on_disk),
            Move(kind=load, resource="h2d", count=counts.moved_activations, num_bytes=moved),
            Move(kind=store, resource="d2h", count=counts.moved_activations, num_bytes=moved),
            Move(kind=store, resource="disk_write", count=counts.disk_activations, num_bytes=on_disk),
        ]

    def _cache_moves(self, held: Held[A], step: Step) -> list[Move[A]]:
        load, store, counts = TaskKind.LOAD_CACHE, TaskKind.STORE_CACHE, held.counts
        is_decode = step.phase == "decode"
        stored = (
            held.streamed_token_bytes if is_decode else held.streamed_token_bytes + held.attended_token_bytes
        )
        num_stored = counts.streamed_cache if is_decode else counts.stored_cache
        num_new, num_loaded = step.stored(held.kept_tokens), step.loaded(held.kept_tokens)
        written = held.disk_token_bytes * num_new
        moves = [
            Move(kind=store, resource="d2h", count=num_stored, num_bytes=stored * num_new),
            Move(kind=store, resource="disk_write", count=counts.disk_cache, num_bytes=written),
        ]
        if is_decode:
            read = held.disk_token_bytes * num_loaded
            loaded = held.streamed_token_bytes * num_loaded
            moves += [
                Move(kind=load, resource="disk_read", count=counts.disk_cache, num_bytes=read),
                Move(kind=load, resource="h2d", count=counts.streamed_cache, num_bytes=loaded),
            ]
        return moves

    @cached_property
    def _curves(self) -> Mapping[str, Curve]:
        """Bytes per second of copies over each resource."""
        rates = self.rates
        each = rates.h2d, rates.d2h, rates.disk_read, rates.disk_write, rates.net, rates.net
        return dict(zip(_COPIES, each, strict=True))

    def speeds(self, moves: Iterable[Move[float]]) -> list[float]:
        """The speed of each move at its mean size."""
        return [self._curves[m.resource].at(m.num_bytes / max(m.count, 1e-9)) for m in moves]

    def timed(self, moves: Iterable[Move[A]], speeds: Iterable[float]) -> list[Timed[A]]:
        """Each move with its time at its own speed."""
        return [Timed(move, self._seconds(move, speed)) for move, speed in zip(moves, speeds, strict=True)]

    def _seconds(self, move: Move[A], speed: float) -> A:
        """Time of a move on its resource, handing it to its thread included."""
        seconds = move.num_bytes * (self.rates.factor(move.resource, move.kind) / speed)
        if self.rates.on_cpu or move.resource in _BY_THREADS:
            return seconds + move.count * self.rates.task_overhead_s
        return seconds

    def lanes(self, timed: Sequence[Timed[A]], compute: Compute[A]) -> list[tuple[str, A]]:
        """(resource or a name of SHARED, seconds) that one pass of one layer takes at least, all overlapped."""
        busy: dict[str, A] = {}
        moved: dict[str, A] = {}
        for move, seconds in timed:
            to, num_bytes = move.resource, move.num_bytes
            busy[to] = busy[to] + seconds if to in busy else seconds
            moved[to] = moved[to] + num_bytes if to in moved else num_bytes
        nothing = compute.count * 0.0
        busy, moved = ({name: of.get(name, nothing) for name in _COPIES} for of in (busy, moved))
        lanes = [(self.compute_tier, compute.linear_s + compute.near_s), *busy.items()]
        if self.rates.on_cpu and self.compute_tier == "gpu":
            lanes.append(
                ("cpu", compute.linear_s + compute.near_s + compute.attend_s)
            )  # the caller does all of it
        if not self.rates.on_cpu:
            issued = self.issued((move for move, _ in timed), compute)
            lanes += [(HOST, issued), ("cpu", compute.first_s + compute.attend_s)]
        return [*lanes, *self._shared_lanes(busy, moved, compute)]

    def issued(self, moves: Iterable[Move[A]], compute: Compute[A]) -> A:
        """The caller's time to ask a GPU for the compute, and for the copies over the link."""
        copies = [move.count for move in moves if move.resource in ("h2d", "d2h")]
        if not copies:
            return compute.issue_s
        return compute.issue_s + reduce(add, copies) * (COPY_CALLS * self.rates.small_layer_s)

    def _shared_lanes(
        self, busy: Mapping[str, A], moved: Mapping[str, A], compute: Compute[A]
    ) -> Iterator[tuple[str, A]]:
        """What lanes cannot all do at once: both directions of a link or disk, host memory, the cores."""
        rates = self.rates
        yield "disk", (busy["disk_read"] + busy["disk_write"]) * (1 / rates.disk_parallel)
        if self.compute_tier == "gpu":
            yield "link", (moved["h2d"] + moved["d2h"]) * (rates.factor("h2d") / rates.both_bytes_per_s)
        yield "cpu_mem", self._host_memory_s(moved, compute)
        if rates.parallel is not None:
            shared = compute.attend_s
            if rates.on_cpu:
                shared = shared + compute.linear_s + compute.near_s
            for seconds in busy.values():
                shared = shared + seconds
            yield "cores", shared * (rates.factor(CONTENTION) / rates.parallel)

    def _host_memory_s(self, moved: Mapping[str, A], compute: Compute[A]) -> A:
        """Host memory's time: an emulated GPU's memory and copies' far ends are in it too."""
        crossings = 2.0 if self.rates.on_cpu else 1.0
        touched = compute.attend_bytes + (moved["h2d"] + moved["d2h"]) * crossings
        touched = touched + moved["disk_read"] + moved["disk_write"]
        if self.rates.on_cpu:
            touched = touched + compute.num_bytes
        return touched * (self.rates.factor("cpu_mem") / self.rates.cpu_memory_bytes_per_s)

    def rounds(self, timed: Sequence[Timed[A]], compute: Compute[A]) -> Iterator[tuple[str, A]]:
        """What slots take from being loaded to being free again, one after another in each of them."""
        nothing = compute.count * 0.0
        weights = _sum(timed, nothing, TaskKind.LOAD_WEIGHT)
        cache = _sum(timed, nothing, TaskKind.LOAD_CACHE, TaskKind.STORE_CACHE)
        for attention in (compute.near_s, compute.attend_s):
            computing = compute.linear_s + attention
            yield ROUNDS, (cache + computing) * (1 / self.choice.cache_slots)
            yield ROUNDS, (weights + computing) * (1 / self.choice.weight_slots)

    def blocked(
        self, timed: Sequence[Timed[A]], compute: Compute[A], num_gpu_batches: float | None
    ) -> Iterator[tuple[str, A]]:
        """What takes longer where computing keeps the caller's thread, which issues nothing else meanwhile.

        Two gpu batches at most are loaded or computing; one by itself is loaded when its last layer is done. On its
        way to a GPU a layer is read from disk only when the one whose staging it takes has gone over the link, and
        what else the link brings waits for it.
        """
        nothing = compute.count * 0.0
        loads = _sum(timed, nothing, TaskKind.LOAD_CACHE)
        reads = [each for each in timed if each.move.resource == "disk_read"]
        waited = _sum(reads, nothing, TaskKind.LOAD_WEIGHT)
        for attention in (compute.near_s, compute.attend_s):
            computing = compute.linear_s + attention
            yield ROUNDS, (loads + computing) * 0.5
            if self.compute_tier == "gpu":
                yield ROUNDS, waited + computing * (1 - 1 / (num_gpu_batches or 2))
        if num_gpu_batches == 1:
            yield ROUNDS, loads + self.chain(timed, compute, 1)

    def chain(self, timed: Iterable[Timed[A]], compute: Compute[A], num_gpu_batches: float) -> A:
        """From a gpu batch's activations in this layer to those in the next: none of it overlaps itself."""
        computing = compute.linear_s + compute.near_s
        kinds = TaskKind.LOAD_ACTIVATION, TaskKind.STORE_ACTIVATION
        return _sum(timed, computing, *kinds) * (1 / num_gpu_batches)


def _sum(timed: Iterable[Timed[A]], nothing: A, *kinds: TaskKind) -> A:
    """The time of the moves of some kinds, added to what there is already."""
    total = nothing
    for move, seconds in timed:
        if move.kind in kinds:
            total = total + seconds
    return total


def compute_seconds(compute: Compute[float]) -> float:
    """Time of compute tasks, the CPU's attention left out; a GPU is not done before the host has issued it all."""
    return max(compute.linear_s + compute.near_s, compute.issue_s)
