"""Pricing: what a placed policy costs, phase by phase, task kind by task kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from planner.cost import HOST, SHARED, CostModel, compute_seconds
from planner.graphs import CAPTURE_PASS
from planner.heat import cooled
from planner.held import held_by_block, of_share
from planner.message_costs import message_moves
from planner.model import LayerSpec
from planner.passes import Blocks, Run, full_block, runs_of
from planner.piece import total as total_of
from planner.plan import JobPrediction, Phase, PhasePrediction, Prediction, TaskPrediction
from planner.rates import Rates
from planner.schedule import TaskKind
from planner.sizes import Sizes
from planner.work import MAX_DECODE_GROUPS, Choice, Compute, Held, Step, Timed

NOT_RUN = "none"
"""The binding resource of a phase without passes: a single generated token leaves no decode."""


def price(sizes: Sizes, rates: Rates, max_decode_groups: int = MAX_DECODE_GROUPS) -> Prediction:
    """The closed formula's prediction for one full block; fewer groups of decode passes are faster and coarser."""
    policy, workload = sizes.policy, sizes.workload
    return _price(
        sizes, rates, [full_block(policy, workload, max_decode_groups)], policy.block_size * workload.gen_len
    )


def predict_job(sizes: Sizes, rates: Rates) -> JobPrediction:
    """The prediction for all prompts of a workload, whose number must be known."""
    policy, workload = sizes.policy, sizes.workload
    blocks = workload.blocks(policy.gpu_batch_size, policy.num_gpu_batches)
    found, num_blocks = price_blocks(sizes, rates, blocks, workload.gen_tokens), blocks.total()
    padding = sum(batch.padding_tokens * count for block, count in blocks.items() for batch in block)
    return JobPrediction(
        num_blocks=num_blocks,
        last_block_size=(workload.num_prompts or 0) - (num_blocks - 1) * policy.block_size,
        padding_tokens=padding,
        prefill_s=found.prefill.seconds,
        decode_s=found.decode.seconds,
        throughput_tokens_per_s=found.throughput_tokens_per_s,
    )


def price_blocks(
    sizes: Sizes, rates: Rates, blocks: Blocks, num_tokens: int, max_groups: int = MAX_DECODE_GROUPS
) -> Prediction:
    """The prediction for these blocks one after the other, which generate `num_tokens` tokens together."""
    return _price(sizes, rates, runs_of(blocks, max_groups), num_tokens)


def _price(sizes: Sizes, rates: Rates, runs: Iterable[Run], num_tokens: int) -> Prediction:
    phases: dict[Phase, _PhaseSum] = {"prefill": _PhaseSum(), "decode": _PhaseSum()}
    for run in runs:
        own = sizes.of_rows(run.batch_rows)
        _add_run(phases, own, cooled(rates, own), run)
    prefill, decode = (phases[phase].prediction(rates.factor(phase)) for phase in ("prefill", "decode"))
    return Prediction(
        prefill=prefill,
        decode=decode,
        throughput_tokens_per_s=num_tokens / (prefill.seconds + decode.seconds),
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

    def add(self, kind: str, resource: str, times: float, total: _TaskSum) -> None:
        """Add `times` passes' tasks."""
        if not total.count:
            return
        task = self.tasks[kind, resource]
        task.count += times * total.count
        task.num_bytes += times * total.num_bytes
        task.flops += times * total.flops
        task.seconds += times * total.seconds
        self.busy[resource] += times * total.seconds

    def add_lanes(self, lanes: Sequence[tuple[str, float]], times: float) -> None:
        """Add `times` passes, each as long as its busiest lane: prefetching evens out how layers differ."""
        self.seconds += times * max(seconds for _, seconds in lanes)
        largest: defaultdict[str, float] = defaultdict(float)
        for name, seconds in lanes:
            largest[name] = max(largest[name], seconds)
        for name, seconds in largest.items():
            self.lanes[name] += times * seconds
        for name in ("cpu_mem", HOST):
            self.busy[name] += times * largest[name]

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


def _add_run(phases: dict[Phase, _PhaseSum], sizes: Sizes, rates: Rates, run: Run) -> None:
    cost = CostModel(
        model=sizes.model,
        workload=sizes.workload,
        choice=Choice.of(sizes.policy),
        compute_tier=sizes.compute_tier,
        rates=rates,
        rows=run.mean_rows,
    )
    groups = _layer_groups(sizes)
    replayed = sizes.graphs.share_of_ends(range(len(sizes.placement.cache_rows)))
    for step in chain.from_iterable(_by_kind(step, run, sizes) for step in run.steps):
        layers = groups
        if step.share != 1.0:
            layers = [replace(group, held=of_share(group.held, step.share)) for group in groups]
        _add_step(phases[step.phase], cost, layers, step, run.ends_of(step), replayed)
        _add_messages(phases[step.phase], cost, sizes, layers[0].held, step)


def _by_kind(step: Step, run: Run, sizes: Sizes) -> Iterator[Step]:
    """Passes that capture, that call and that replay, apart: what one of them waits for the others do not make up."""
    if step.phase == "prefill" or not sizes.graphs.layers:
        yield step
        return
    of_blocks = _of_blocks(step, run, sizes)
    eager, captured = of_blocks.eager, of_blocks.captured
    for share, calls, captures in ((captured, 1.0, 1.0), (eager - captured, 1.0, 0.0), (1 - eager, 0.0, 0.0)):
        if share > 0:
            yield replace(step, num_steps=share * step.num_steps, eager=calls, captured=captures)


def _of_blocks(step: Step, run: Run, sizes: Sizes) -> Step:
    """Graphs of the first block are replayed in those like it, whose gpu batches end together.

    From the first pass of decode on, or from the second where the CPU attends.
    """
    if run.num_blocks == 1 or any(other.share != 1.0 for other in run.steps):
        return step
    first = 1 / run.num_blocks
    attended = any(rows.cpu_attend for rows in sizes.placement.cache_rows)
    eager = first + (1 - first) * attended / CAPTURE_PASS
    return replace(step, captured=step.captured * first, eager=step.eager * eager)


def _add_step(
    total: _PhaseSum, cost: CostModel, layers: list[_LayerGroup], step: Step, num_ends: float, replayed: float
) -> None:
    all_timed = [_timed(cost, group.held, step) for group in layers]
    lanes = [
        _add_layers(total, cost, group, step, timed) for group, timed in zip(layers, all_timed, strict=True)
    ]
    pieces, tier, held = cost.ends(step, replayed), cost.compute_tier, layers[0].held
    ends, times = total_of(pieces), step.num_steps * held.batches
    sums = [(same[0][0], sum(seconds for _, seconds in same)) for same in zip(*lanes, strict=True)]
    issued_s = ends.issue_s * held.batches
    total.add_lanes([(name, s + issued_s if name == HOST else s) for name, s in sums], step.num_steps)
    total.seconds += ends.seconds * times
    total.lanes[tier] += ends.seconds * times
    total.add(
        TaskKind.COMPUTE.value,
        tier,
        times,
        _TaskSum(1 + cost.model.has_head, ends.num_bytes, ends.flops, sum(piece.alone_s for piece in pieces)),
    )
    if step.phase == "prefill":  # nothing runs before the first layer has come
        loads_s = sum(seconds for move, seconds in all_timed[0] if move.kind == TaskKind.LOAD_WEIGHT)
        total.seconds += loads_s / held.passes * step.num_steps
    stores_s = sum(seconds for move, seconds in all_timed[0] if move.kind == TaskKind.STORE_CACHE)
    total.seconds += stores_s / held.batches * num_ends


def _add_messages(total: _PhaseSum, cost: CostModel, sizes: Sizes, held: Held[float], step: Step) -> None:
    """Between stages: copies over the link wait for the first message of a wave, all others go on beside the layers."""
    moves = message_moves(sizes.messages, cost.computing.rows, step, held.batches)
    timed = cost.timed(moves, cost.speeds(moves))
    _add_moves(total, timed, step.num_steps)
    for move, seconds in timed:
        total.lanes[move.resource] += step.num_steps * seconds
        if move.resource in ("h2d", "d2h"):
            total.seconds += step.num_steps * held.passes * seconds / move.count


def _timed(cost: CostModel, held: Held[float], step: Step) -> list[Timed[float]]:
    """A layer's moves in one pass, each at the speed of its size."""
    moves = cost.moves(held, step)
    return cost.timed(moves, cost.speeds(moves))


def _add_layers(
    total: _PhaseSum, cost: CostModel, group: _LayerGroup, step: Step, timed: Sequence[Timed[float]]
) -> list[tuple[str, float]]:
    """Add up the tasks of alike layers in one step; the lanes of one pass."""
    held, times = group.held, group.count * step.num_steps
    compute = cost.compute(group.layer, held, step)
    lanes = cost.lanes(timed, compute)
    lanes += cost.rounds(timed, compute)
    if cost.rates.on_cpu or compute.attend_count > 0:
        lanes += cost.blocked(timed, compute, held.batches)
    lanes.append((cost.compute_tier, cost.chain(timed, compute, held.batches)))
    _add_moves(total, timed, times)
    total.add(TaskKind.COMPUTE.value, cost.compute_tier, times, _computed(compute))
    read = cost.attended_bytes(held, step)
    total.add(
        TaskKind.ATTEND.value, "cpu", times, _TaskSum(compute.attend_count, read, 0.0, compute.attend_s)
    )
    return [(name, group.count * seconds) for name, seconds in lanes]


def _add_moves(total: _PhaseSum, timed: Iterable[Timed[float]], times: float) -> None:
    for move, seconds in timed:
        total.add(move.kind.value, move.resource, times, _TaskSum(move.count, move.num_bytes, 0.0, seconds))


def _computed(compute: Compute[float]) -> _TaskSum:
    count = compute.count + compute.num_parts
    return _TaskSum(count, compute.num_bytes, compute.flops, compute_seconds(compute))


def _layer_groups(sizes: Sizes) -> list[_LayerGroup]:
    layers, is_later = sizes.model.layers, not sizes.model.has_embedding
    keys = [
        (id(slabs), id(layer), is_later and j == 0)
        for j, (slabs, layer) in enumerate(zip(sizes.slabs, layers, strict=True))
    ]
    return [
        _LayerGroup(layer=layers[j], held=held_by_block(sizes, j), count=count)
        for j, count in ((keys.index(key), count) for key, count in Counter(keys).items())
    ]
