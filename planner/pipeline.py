"""Pipeline: the plans of its stages as one plan, and the time that they take together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.batching import BlockLengths
from planner.ledger import Entry, Ledger, Target
from planner.model import ModelSpec
from planner.placement import Placement
from planner.plan import (
    PHASES,
    Interval,
    JobPrediction,
    ModelRef,
    Phase,
    PhasePrediction,
    Plan,
    Prediction,
    Range,
    Stage,
    TaskPrediction,
)
from planner.policy import TIERS, Split
from planner.pricing import price, price_blocks
from planner.shape import split_waves
from planner.sites import Site
from planner.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """One phase's time of one stage with all waves, and how much of a wave's must be over before the next stage's."""

    wave_s: float
    lead_s: float

    @classmethod
    def of(cls, seconds: float, num_waves: int, num_layers: int, wave_batches: float) -> StageTime:
        """A wave's first gpu batch leaves when all but its last layer, and one gpu batch of that, are done."""
        wave_s = seconds / num_waves
        last_layer = (1 - 1 / max(1.0, wave_batches)) / num_layers
        return cls(wave_s=wave_s, lead_s=wave_s * (1 - last_layer))


def prefill_seconds(stages: Sequence[StageTime], num_waves: int) -> float:
    """The first wave through all stages, then the others as fast as the slowest stage lets them."""
    through = sum(stage.lead_s for stage in stages[:-1]) + stages[-1].wave_s
    return through + (num_waves - 1) * max(stage.wave_s for stage in stages)


def pass_seconds(stages: Sequence[StageTime], num_waves: int) -> float:
    """From one token of a wave to its next: its way through all stages, or all waves through the slowest."""
    return max(sum(stage.lead_s for stage in stages), num_waves * max(stage.wave_s for stage in stages))


def pipeline_prediction(parts: Sequence[Plan]) -> Prediction:
    """The prediction of stages that run side by side, from that of each by itself."""
    policy, workload = parts[0].policy, parts[0].workload
    own = [part.prediction for part in parts]
    prefill_s, decode_s = (_phase_seconds(parts, own, phase, policy.num_gpu_batches) for phase in PHASES)
    tokens = policy.block_size * workload.gen_len
    throughput = tokens / (prefill_s + decode_s)
    found = Prediction(
        prefill=_phase(parts, "prefill", prefill_s),
        decode=_phase(parts, "decode", decode_s),
        throughput_tokens_per_s=throughput,
        tasks=_tasks(parts),
    )
    return replace(found, interval=_interval(parts, found))


def formula_of(plan: Plan) -> Prediction:
    """The closed formula's prediction of a pipeline at the rates in its plan."""
    parts = [plan.of_rank(rank) for rank in range(len(plan.stages))]
    priced = [replace(part, prediction=price(part.sizes(), part.known_rates())) for part in parts]
    return pipeline_prediction(priced)


def join(spec: ModelSpec, workload: Workload, parts: Sequence[Plan], sites: Sequence[Site]) -> Plan:
    """One plan of the stages' plans, in the order of their layers."""
    first, prediction = parts[0], pipeline_prediction(parts)
    return Plan(
        schema_version=first.schema_version,
        model=ModelRef.of(spec),
        workload=workload,
        hardware=_sum_targets([part.hardware for part in parts]),
        policy=replace(
            first.policy,
            weights=_mean(parts, [part.policy.weights for part in parts]),
            cache=_mean(parts, [part.policy.cache for part in parts]),
            activations=_mean(parts, [part.policy.activations for part in parts]),
        ),
        placement=_join_placements(parts),
        ledger=sum_ledgers([part.ledger for part in parts]),
        prediction=prediction,
        job=_job(parts, prediction),
        stages=tuple(_stage(part, site) for part, site in zip(parts, sites, strict=True)),
    )


def _stage(part: Plan, site: Site) -> Stage:
    assert part.model.layers is not None, "a stage has some of the layers"
    return Stage(
        layers=part.model.layers,
        host=site.host,
        gpu=site.gpu if part.hardware.compute_tier == "gpu" and not part.hardware.emulated else None,
        cpus=site.cpus,
        threads=max(1, len(site.cpus)),
        hardware=part.hardware,
        policy=part.policy,
        placement=part.placement,
        ledger=part.ledger,
        prediction=part.prediction,
        rates=part.rates,
        sharing=site.sharing.among(part.policy.num_waves) if site.sharing else None,
    )


def _job(parts: Sequence[Plan], block: Prediction) -> JobPrediction | None:
    """All prompts: each phase is as much longer than the slowest stage's as that of a full block is.

    A last block of fewer gpu batches fills the pipe less, and is priced by itself.
    """
    jobs = [part.job for part in parts if part.job]
    if len(jobs) < len(parts):
        return None
    last = _smaller_block(parts[0])
    own = [price_blocks(part.sizes(), part.known_rates(), {last: 1}, 1) if last else None for part in parts]
    prefill_s, decode_s = (
        stretched(
            max(
                getattr(job, f"{phase}_s") - (found.of(phase).seconds if found else 0.0)
                for job, found in zip(jobs, own, strict=True)
            ),
            block.of(phase).seconds,
            max(part.prediction.of(phase).seconds for part in parts),
        )
        for phase in PHASES
    )
    if last:
        found = [each for each in own if each]
        prefill_s += _phase_seconds(parts, found, "prefill", len(last))
        decode_s += _phase_seconds(parts, found, "decode", len(last))
    tokens = jobs[0].throughput_tokens_per_s * jobs[0].seconds
    return replace(
        jobs[0],
        prefill_s=prefill_s,
        decode_s=decode_s,
        throughput_tokens_per_s=tokens / (prefill_s + decode_s),
    )


def _smaller_block(part: Plan) -> BlockLengths | None:
    """The last block of a job, if it has fewer gpu batches than the others."""
    policy = part.policy
    blocks = part.workload.blocks(policy.gpu_batch_size, policy.num_gpu_batches)
    return next((block for block in blocks if len(block) < policy.num_gpu_batches), None)


def stretched(seconds: float, pipeline_s: float, stage_s: float) -> float:
    """The slowest stage's seconds as those of the pipeline, in the proportion of a full block's."""
    return seconds * pipeline_s / stage_s if stage_s else seconds


def _phase_seconds(
    parts: Sequence[Plan], found: Sequence[Prediction], phase: Phase, num_batches: int
) -> float:
    """A phase of one block of so many gpu batches, from what each stage takes for it by itself."""
    num_passes = 1 if phase == "prefill" else parts[0].workload.gen_len - 1
    if not num_passes:
        return 0.0
    waves = split_waves(num_batches, parts[0].policy.num_waves)
    stages = [
        StageTime.of(
            own.of(phase).seconds / num_passes,
            len(waves),
            len(part.placement.weight_tiers),
            len(waves[-1]),
        )
        for part, own in zip(parts, found, strict=True)
    ]
    if phase == "prefill":
        return prefill_seconds(stages, len(waves))
    return num_passes * pass_seconds(stages, len(waves))


def _phase(parts: Sequence[Plan], phase: Phase, seconds: float) -> PhasePrediction:
    """What binds the slowest stage binds the pipeline."""
    slowest = max((part.prediction.of(phase) for part in parts), key=lambda found: found.seconds)
    return PhasePrediction(seconds=seconds, busy_s=slowest.busy_s, binding=slowest.binding)


def _tasks(parts: Sequence[Plan]) -> tuple[TaskPrediction, ...]:
    """Those of all stages, kind by kind."""
    found: dict[tuple[str, str, str], TaskPrediction] = {}
    for part in parts:
        for task in part.prediction.tasks:
            key = task.phase, task.kind, task.resource
            known = found.get(key)
            found[key] = (
                task
                if known is None
                else replace(
                    known,
                    count=known.count + task.count,
                    num_bytes=known.num_bytes + task.num_bytes,
                    flops=known.flops + task.flops,
                    seconds=known.seconds + task.seconds,
                )
            )
    return tuple(found.values())


def _interval(parts: Sequence[Plan], found: Prediction) -> Interval | None:
    """As wide as the widest of the stages', each side by itself."""
    known = [part.prediction.interval for part in parts if part.prediction.interval]
    if len(known) < len(parts):
        return None
    prefill, decode, throughput = (
        _widest(
            [getattr(interval, name) for interval in known],
            [_value(part.prediction, name) for part in parts],
            _value(found, name),
        )
        for name in ("prefill_s", "decode_s", "throughput_tokens_per_s")
    )
    return Interval(
        prefill_s=prefill, decode_s=decode, throughput_tokens_per_s=throughput, error=known[0].error
    )


def _value(prediction: Prediction, name: str) -> float:
    return {
        "prefill_s": prediction.prefill.seconds,
        "decode_s": prediction.decode.seconds,
        "throughput_tokens_per_s": prediction.throughput_tokens_per_s,
    }[name]


def _widest(ranges: Sequence[Range], middles: Sequence[float], middle: float) -> Range:
    low = min((r.low / m for r, m in zip(ranges, middles, strict=True) if m), default=1.0)
    high = max((r.high / m for r, m in zip(ranges, middles, strict=True) if m), default=1.0)
    return Range(low=middle * low, high=middle * high)


def _mean(parts: Sequence[Plan], splits: Sequence[Split]) -> Split:
    """A stage counts as much as it has layers."""
    weights = [len(part.placement.weight_tiers) for part in parts]
    gpu, cpu, disk = (
        sum(getattr(split, tier) * weight for split, weight in zip(splits, weights, strict=True))
        / sum(weights)
        for tier in TIERS
    )
    return Split(gpu=gpu, cpu=cpu, disk=disk)


def _join_placements(parts: Sequence[Plan]) -> Placement:
    """All layers' tensors; rows lie elsewhere on every stage and are left to the stages."""
    return Placement(
        weight_tiers=tuple(letters for part in parts for letters in part.placement.weight_tiers),
        cache_rows=(),
        activation_rows=(),
        weights=_mean(parts, [part.placement.weights for part in parts]),
        cache=_mean(parts, [part.placement.cache for part in parts]),
        activations=_mean(parts, [part.placement.activations for part in parts]),
    )


def _sum_targets(targets: Sequence[Target]) -> Target:
    first = targets[0]
    return replace(
        first,
        gpu_bytes=sum(target.gpu_bytes for target in targets),
        cpu_bytes=sum(target.cpu_bytes for target in targets),
        disk_bytes=sum(target.disk_bytes for target in targets),
        context_bytes=sum(target.context_bytes for target in targets),
        process_bytes=sum(target.process_bytes for target in targets),
        margins=first.margins.times(len(targets)),
        process_spread_bytes=sum(target.process_spread_bytes for target in targets),
        headroom_bytes=sum(target.headroom_bytes for target in targets),
    )


def sum_ledgers(ledgers: Sequence[Ledger]) -> Ledger:
    """Entries of one tier and purpose added up."""
    found: defaultdict[tuple[str, str, bool], list[Entry]] = defaultdict(list)
    for ledger in ledgers:
        for entry in ledger.entries:
            found[entry.tier, entry.purpose, entry.arena].append(entry)
    return Ledger(
        entries=tuple(
            replace(
                entries[0],
                prefill_bytes=sum(entry.prefill_bytes for entry in entries),
                decode_bytes=sum(entry.decode_bytes for entry in entries),
                loading_bytes=sum(entry.loading_bytes for entry in entries),
            )
            for entries in found.values()
        )
    )
