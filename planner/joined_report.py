"""Joined report: one report of a job that two plans ran, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from planner.report import PhaseReport, Replanned, RunBlocks, RunReport, TaskReport, TierReport


def joined(before: RunReport, after: RunReport, reason: str) -> RunReport:
    """Sums of both; the plan, what binds and how time was used are those of the plan that ran last."""
    generated = before.generated_tokens + after.generated_tokens
    phases = tuple(_phase(*pair) for pair in zip(before.phases, after.phases, strict=True))
    measured_s, predicted_s = before.measured_s + after.measured_s, before.predicted_s + after.predicted_s
    return replace(
        after,
        num_blocks=before.num_blocks + after.num_blocks,
        num_requests=before.num_requests + after.num_requests,
        prompt_tokens=before.prompt_tokens + after.prompt_tokens,
        generated_tokens=generated,
        padding_tokens=before.padding_tokens + after.padding_tokens,
        phases=phases,
        throughput_tokens_per_s=generated / measured_s if measured_s else None,
        predicted_throughput_tokens_per_s=generated / predicted_s if predicted_s else None,
        overlap=_weighted(before, after),
        tasks=tuple(_tasks(before, after)),
        memory=tuple(_tiers(before, after)),
        blocks=_blocks(before, after),
        replanned=Replanned(at=before.created, reason=reason, before=before, after=after),
    )


def _phase(one: PhaseReport, other: PhaseReport) -> PhaseReport:
    measured_s, tokens = one.measured_s + other.measured_s, one.tokens + other.tokens
    return PhaseReport(
        phase=one.phase,
        predicted_s=one.predicted_s + other.predicted_s,
        measured_s=measured_s,
        tokens=tokens,
        tokens_per_s=tokens / measured_s if measured_s else None,
    )


def _weighted(before: RunReport, after: RunReport) -> float | None:
    """Busy seconds of all lanes over seconds passed."""
    parts = [(report.overlap, report.measured_s) for report in (before, after) if report.overlap is not None]
    seconds = sum(part for _, part in parts)
    return sum(overlap * part for overlap, part in parts) / seconds if seconds else None


def _tasks(before: RunReport, after: RunReport) -> Iterator[TaskReport]:
    by_key = {(task.phase, task.kind, task.resource): task for task in before.tasks}
    for task in after.tasks:
        other = by_key.pop((task.phase, task.kind, task.resource), None)
        yield task + other if other else task
    yield from by_key.values()


def _tiers(before: RunReport, after: RunReport) -> Iterator[TierReport]:
    """Of each tier the plan that promised more of it: the two were never there at once."""
    rows = {row.tier: row for row in before.memory}
    for row in after.memory:
        other = rows.pop(row.tier, row)
        yield max(row, other, key=lambda each: each.ledger_bytes)
    yield from rows.values()


def _blocks(before: RunReport, after: RunReport) -> tuple[RunBlocks, ...]:
    counts = Counter({found.gpu_batches: found.count for found in before.blocks})
    counts.update({found.gpu_batches: found.count for found in after.blocks})
    return tuple(RunBlocks(gpu_batches=block, count=count) for block, count in counts.items())
