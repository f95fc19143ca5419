"""Pricing: what a placed policy costs, phase by phase, task kind by task kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from planner.cost import SHARED, CostModel
from planner.layout import activations_resident, is_resident, is_streamed, token_stride
from planner.ledger import Sizes
from planner.machine import Rates
from planner.model import LayerSpec
from planner.placement import CACHE_GROUPS, CacheGroup, group_tier
from planner.plan import Phase, PhasePrediction, Prediction, TaskPrediction
from planner.schedule import TaskKind
from planner.work import Choice, Compute, Counts, Held, Move, Step, steps_of

ATTEND = "attend"
"""The CPU's part of a compute task, as it stands in predictions and reports beside the kinds of tasks."""
NOT_RUN = "none"
"""The binding resource of a phase without passes: a single generated token leaves no decode."""


def price(sizes: Sizes, rates: Rates) -> Prediction:
    """The prediction for one full block."""
    policy, workload = sizes.policy, sizes.workload
    cost = CostModel(
        model=sizes.model,
        workload=workload,
        choice=Choice.of(policy),
        compute_tier=sizes.compute_tier,
        rates=rates,
    )
    layers = _layer_groups(sizes)
    phases: dict[Phase, _PhaseSum] = {"prefill": _PhaseSum(), "decode": _PhaseSum()}
    for step in steps_of(workload):
        _add_step(phases[step.phase], cost, layers, step)
    prefill, decode = (phases[phase].prediction(rates.factor(phase)) for phase in ("prefill", "decode"))
    tokens = policy.block_size * workload.gen_len
    return Prediction(
        prefill=prefill,
        decode=decode,
        throughput_tokens_per_s=tokens / (prefill.seconds + decode.seconds),
        tasks=tuple(task for phase, total in phases.items() for task in total.task_predictions(phase)),
    )


@dataclass(slots=True)
class _TaskSum:
    """Running sums of one kind of task on one resource."""

    count: float = 0.0
    num_bytes: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class _PhaseSum:
    """Running sums of one phase."""

    seconds: float = 0.0
    lanes: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    busy: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    tasks: defaultdict[tuple[str, str], _TaskSum] = field(default_factory=lambda: defaultdict(_TaskSum))

    def add(self, kind: str, resource: str, times: int, total: _TaskSum) -> None:
        """Add `times` passes' tasks."""
        if not total.count:
            return
        task = self.tasks[kind, resource]
        task.count += times * total.count
        task.num_bytes += times * total.num_bytes
        task.flops += times * total.flops
        task.seconds += times * total.seconds
        self.busy[resource] += times * total.seconds

    def prediction(self, factor: float) -> PhasePrediction:
        """The phase as a plan holds it; `factor` is the phase's own calibration."""
        busy = {resource: seconds for resource, seconds in self.busy.items() if seconds}
        binding = max(self.lanes, key=lambda lane: self.lanes[lane]) if self.lanes else NOT_RUN
        if binding in SHARED:
            binding = max(SHARED[binding], key=lambda resource: busy.get(resource, 0.0))
        return PhasePrediction(seconds=self.seconds * factor, busy_s=busy, binding=binding)

    def task_predictions(self, phase: Phase) -> Iterator[TaskPrediction]:
        """The phase's tasks as a plan holds them."""
        for (kind, resource), task in sorted(self.tasks.items()):
            yield TaskPrediction(
                phase=phase,
                kind=kind,
                resource=resource,
                count=round(task.count),
                num_bytes=task.num_bytes,
                flops=task.flops,
                seconds=task.seconds,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerGroup:
    """Layers that are alike in shape and in placement."""

    layer: LayerSpec
    held: Held[float]
    count: int


def _add_step(total: _PhaseSum, cost: CostModel, layers: list[_LayerGroup], step: Step) -> None:
    for group in layers:
        _add_layers(total, cost, group, step)
    ends, tier, held = cost.ends(step), cost.compute_tier, layers[0].held
    times = step.num_steps * int(held.batches)
    total.seconds += ends.seconds * times
    total.lanes[tier] += ends.seconds * times
    total.add(
        TaskKind.COMPUTE.value,
        tier,
        times,
        _TaskSum(2, ends.num_bytes, ends.flops, ends.seconds),
    )
    moves = cost.moves(held, step)
    speeds = cost.speeds(moves)
    if step.phase == "prefill":  # nothing runs before the first layer has come
        loads = [move for move in moves if move.kind == TaskKind.LOAD_WEIGHT]
        total.seconds += sum(cost.seconds(move, speeds) for move in loads)
    stores = [move for move in moves if move.kind == TaskKind.STORE_CACHE]
    total.seconds += sum(cost.seconds(move, speeds) for move in stores) / held.batches


def _add_layers(total: _PhaseSum, cost: CostModel, group: _LayerGroup, step: Step) -> None:
    held, times = group.held, group.count * step.num_steps
    moves, compute = cost.moves(held, step), cost.compute(group.layer, held, step)
    speeds = cost.speeds(moves)
    lanes = cost.lanes(moves, compute, speeds)
    lanes.append((cost.compute_tier, cost.chain(moves, compute, speeds, int(held.batches))))
    total.seconds += times * max(seconds for _, seconds in lanes)
    largest: defaultdict[str, float] = defaultdict(float)
    for resource, seconds in lanes:
        largest[resource] = max(largest[resource], seconds)
    for resource, seconds in largest.items():
        total.lanes[resource] += times * seconds
    total.busy["cpu_mem"] += times * largest["cpu_mem"]
    for move in moves:
        total.add(move.kind.value, move.resource, times, _moved(cost, move, speeds))
    total.add(TaskKind.COMPUTE.value, cost.compute_tier, times, _computed(compute))
    read = held.attended_token_bytes * step.context
    total.add(ATTEND, "cpu", times, _TaskSum(compute.attend_count, read, 0.0, compute.attend_s))


def _moved(cost: CostModel, move: Move[float], speeds: dict[tuple[str, str], float]) -> _TaskSum:
    return _TaskSum(move.count, move.num_bytes, 0.0, cost.seconds(move, speeds))


def _computed(compute: Compute[float]) -> _TaskSum:
    seconds = compute.linear_s + max(compute.near_s, compute.attend_s)
    return _TaskSum(compute.count, compute.num_bytes, compute.flops, seconds)


def _layer_groups(sizes: Sizes) -> list[_LayerGroup]:
    keys = [(id(slabs), id(layer)) for slabs, layer in zip(sizes.slabs, sizes.model.layers, strict=True)]
    return [
        _LayerGroup(layer=sizes.model.layers[j], held=_held(sizes, j), count=count)
        for j, count in ((keys.index(key), count) for key, count in Counter(keys).items())
    ]


def _held(sizes: Sizes, j: int) -> Held[float]:
    tier, batches = sizes.compute_tier, sizes.placement.cache_rows
    stored, streamed, attended, on_disk = (
        _cache_part(sizes, [group for group in CACHE_GROUPS if wanted(group)])
        for wanted in (
            lambda group: not is_resident(group, tier),
            lambda group: is_streamed(group, tier),
            lambda group: group.endswith("_attend"),
            lambda group: group_tier(group) == "disk",
        )
    )
    moved = [batch for batch in sizes.placement.activation_rows if not activations_resident(batch, tier)]
    cpu_bytes = sizes.slabs[j]["cpu"].nbytes if tier == "gpu" else 0
    disk_bytes = sizes.slabs[j]["disk"].nbytes
    return Held(
        passes=1.0,
        batches=float(len(batches)),
        cpu_weight_bytes=float(cpu_bytes),
        disk_weight_bytes=float(disk_bytes),
        near_rows=sum(batch.total for batch in batches) - attended.rows,
        attended_rows=attended.rows,
        streamed_token_bytes=streamed.token_bytes,
        attended_token_bytes=attended.token_bytes,
        disk_token_bytes=on_disk.token_bytes,
        moved_rows=float(sum(batch.total - dict(batch.counts())[tier] for batch in moved)),
        disk_rows=float(sum(batch.disk for batch in moved)),
        counts=Counts(
            link_weights=float(cpu_bytes + disk_bytes > 0),
            disk_weights=float(disk_bytes > 0),
            stored_cache=stored.batches,
            streamed_cache=streamed.batches,
            attended_cache=attended.batches,
            disk_cache=on_disk.batches,
            moved_activations=float(len(moved)),
            disk_activations=float(sum(batch.disk > 0 for batch in moved)),
        ),
    )


@dataclass(frozen=True, slots=True)
class _CachePart:
    """Some cache groups of a block: gpu batches with such rows, rows, bytes of one token of one layer."""

    batches: float
    rows: float
    token_bytes: float


def _cache_part(sizes: Sizes, groups: Sequence[CacheGroup]) -> _CachePart:
    counts = [[(group, getattr(batch, group)) for group in groups] for batch in sizes.placement.cache_rows]
    held = [(group, rows) for batch in counts for group, rows in batch if rows]
    return _CachePart(
        batches=float(sum(any(rows for _, rows in batch) for batch in counts)),
        rows=float(sum(rows for _, rows in held)),
        token_bytes=float(sum(token_stride(group, rows, sizes.vector_bytes) for group, rows in held)),
    )
