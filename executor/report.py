"""The run report: predicted beside measured, for every kind of task, both phases and every tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch

from executor import memory
from executor.batching import Block
from executor.compiling import has_compiled
from executor.measure import Key, Measurements, Total
from executor.sampling import Completion
from hwprofiles.host import current_fingerprint
from planner.batching import BlockLengths
from planner.bottleneck import phase_activity
from planner.ledger import COMPILING
from planner.plan import PHASES, Phase, Plan, Prediction, TaskPrediction
from planner.predict import as_simulated
from planner.pricing import price_blocks
from planner.report import SCHEMA_VERSION, PhaseReport, RunBlocks, RunReport, TaskReport, TierReport


@dataclass(slots=True)
class JobTotals:
    """What has been run so far, in this process."""

    absent: Collection[str] = ()
    """Purposes of the ledger that do not arise in this run."""
    num_requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    padding_tokens: int = 0
    blocks: Counter[BlockLengths] = field(default_factory=Counter)
    """As they were run: sequences may have ended early."""

    def add(self, block: Block, completions: Sequence[Completion], passes: Mapping[int, int]) -> None:
        """One more block, with the tokens generated for each of its gpu batches."""
        self.blocks[tuple(batch.lengths(passes[k]) for k, batch in enumerate(block.gpu_batches))] += 1
        self.num_requests += len(completions)
        self.prompt_tokens += sum(len(c.request.prompt_ids) for c in completions)
        self.generated_tokens += sum(len(c.token_ids) for c in completions)
        self.padding_tokens += sum(batch.num_pad_tokens for batch in block.gpu_batches)


def make_report(
    plan: Plan, measured: Measurements, totals: JobTotals, device: torch.device, *, disk_bytes: int
) -> RunReport:
    """The report of everything that was measured; `disk_bytes` are what the file system counts for the disk tier."""
    predicted = predict(plan, totals.blocks, totals.generated_tokens) if totals.blocks else None
    phases = tuple(_phase_report(predicted, measured, phase) for phase in PHASES)
    predicted_s = sum(phase.predicted_s for phase in phases)
    measured_s = sum(phase.measured_s for phase in phases)
    found = (phase_activity(phase, measured.activities[phase]) for phase in PHASES)
    activity = tuple(phase for phase in found if phase)
    busy_s = sum(total.seconds for total in measured.totals.values())
    return RunReport(
        schema_version=SCHEMA_VERSION,
        plan_digest=plan.digest(),
        plan=plan,
        model_name=plan.model.name,
        fingerprint=current_fingerprint(),
        hardware_digest=plan.hardware.digest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        num_blocks=measured.num_blocks,
        num_requests=totals.num_requests,
        phases=phases,
        throughput_tokens_per_s=_ratio(totals.generated_tokens, measured_s),
        predicted_throughput_tokens_per_s=_ratio(totals.generated_tokens, predicted_s),
        tasks=tuple(_task_reports(predicted, measured)),
        memory=tuple(_tier_reports(plan, device, disk_bytes, totals.absent)),
        prompt_tokens=totals.prompt_tokens,
        generated_tokens=totals.generated_tokens,
        padding_tokens=totals.padding_tokens,
        overlap=_ratio(busy_s, measured_s),
        binding={found.phase: found.binding for found in activity},
        activity=activity,
        blocks=tuple(RunBlocks(gpu_batches=block, count=count) for block, count in totals.blocks.items()),
    )


def predict(plan: Plan, blocks: Mapping[BlockLengths, int], num_tokens: int) -> Prediction:
    """What the plan's cost model says of blocks as they were run."""
    formula = price_blocks(plan.sizes(), plan.known_rates(), blocks, num_tokens)
    return as_simulated(formula, plan.prediction)


def _phase_report(predicted: Prediction | None, measured: Measurements, phase: Phase) -> PhaseReport:
    seconds, tokens = measured.phase_s[phase], measured.phase_tokens[phase]
    of_phase = {"prefill": predicted.prefill, "decode": predicted.decode} if predicted else {}
    return PhaseReport(
        phase=phase,
        predicted_s=of_phase[phase].seconds if predicted else 0.0,
        measured_s=seconds,
        tokens=tokens,
        tokens_per_s=_ratio(tokens, seconds),
    )


def _task_reports(predicted: Prediction | None, measured: Measurements) -> list[TaskReport]:
    tasks = predicted.tasks if predicted else ()
    known = {(task.phase, task.kind, task.resource): task for task in tasks}
    keys: list[Key] = sorted({*known, *measured.totals})
    return [_task_report(key, known.get(key), measured.totals.get(key, Total())) for key in keys]


def _task_report(key: Key, predicted: TaskPrediction | None, total: Total) -> TaskReport:
    phase, kind, resource = key
    return TaskReport(
        phase=phase,
        kind=kind,
        resource=resource,
        count=total.count,
        num_bytes=total.num_bytes,
        flops=predicted.flops if predicted else 0.0,
        predicted_s=predicted.seconds if predicted else 0.0,
        measured_s=total.seconds,
    )


def _tier_reports(
    plan: Plan, device: torch.device, disk_bytes: int, absent: Collection[str]
) -> list[TierReport]:
    """Each tier's ledger beside what the operating system (or CUDA) counted.

    An emulated gpu tier lies in the process's own memory, where it cannot be told from the cpu tier: both are counted
    together as `host`. What does not arise in this run is left out of the ledger.
    """
    hardware = plan.hardware
    ledger = plan.ledger.without(*absent, *(() if has_compiled() else (COMPILING,)))
    resident = memory.peak_resident_bytes()
    rows = []
    if hardware.compute_tier == "gpu":
        measured = None if hardware.emulated else memory.peak_gpu_bytes(device)
        rows.append(("gpu", ledger.peak_bytes("gpu"), hardware.gpu_bytes, measured))
    rows.append(
        ("cpu", ledger.peak_bytes("cpu"), hardware.cpu_bytes, None if hardware.emulated else resident)
    )
    if hardware.emulated:
        both = ledger.peak_bytes("gpu") + ledger.peak_bytes("cpu")
        rows.append(("host", both, hardware.gpu_bytes + hardware.cpu_bytes, resident))
    if ledger.peak_bytes("disk"):
        rows.append(("disk", ledger.peak_bytes("disk"), hardware.disk_bytes, disk_bytes))
    return [
        TierReport(tier=tier, ledger_bytes=held, limit_bytes=limit, measured_peak_bytes=measured)
        for tier, held, limit, measured in rows
    ]


def _ratio(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None
