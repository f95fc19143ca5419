"""Rank reports: what the ranks of a pipeline measured, as one report of the whole run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner.activity import PhaseActivity
from planner.pipeline import stretched
from planner.plan import PHASES, Phase, Plan
from planner.report import PhaseReport, RankReport, RunReport, TaskReport, TierReport


def joined_ranks(plan: Plan, reports: Sequence[RunReport]) -> RunReport:
    """The first rank's report, whose clock and tokens are the job's, with the tasks and the memory of all."""
    first = reports[0]
    phases = tuple(
        replace(phase, predicted_s=_predicted_s(plan, reports, phase.phase)) for phase in first.phases
    )
    predicted_s = sum(phase.predicted_s for phase in phases)
    activity = tuple(found for phase in PHASES if (found := _busiest(reports, phase)))
    overlaps = [report.overlap for report in reports if report.overlap is not None]
    return replace(
        first,
        plan=plan,
        plan_digest=plan.digest(),
        phases=phases,
        predicted_throughput_tokens_per_s=first.generated_tokens / predicted_s if predicted_s else None,
        overlap=sum(overlaps) if overlaps else None,
        binding={found.phase: found.binding for found in activity},
        activity=activity,
        tasks=tuple(_tasks(reports)),
        memory=tuple(_tiers(reports)),
        ranks=tuple(_rank(rank, report) for rank, report in enumerate(reports)),
    )


def _rank(rank: int, report: RunReport) -> RankReport:
    return RankReport(
        rank=rank,
        fingerprint=report.fingerprint,
        overlap=report.overlap,
        binding=report.binding,
        tasks=report.tasks,
        memory=report.memory,
        activity=report.activity,
    )


def _predicted_s(plan: Plan, reports: Sequence[RunReport], phase: Phase) -> float:
    """Of the blocks that were run, as the plan has it of a full one: so much longer than the slowest stage's."""
    return stretched(
        max(_phase(report, phase).predicted_s for report in reports),
        plan.prediction.of(phase).seconds,
        max(stage.prediction.of(phase).seconds for stage in plan.stages),
    )


def _phase(report: RunReport, phase: Phase) -> PhaseReport:
    return next(found for found in report.phases if found.phase == phase)


def _busiest(reports: Sequence[RunReport], phase: Phase) -> PhaseActivity | None:
    """Of the rank whose binding resource is busiest: the others wait for it."""
    found = [activity for report in reports for activity in report.activity if activity.phase == phase]
    return max(found, key=lambda activity: activity.busy_share.get(activity.binding, 0.0), default=None)


def _tasks(reports: Sequence[RunReport]) -> Iterator[TaskReport]:
    """Sums of all ranks, kind by kind."""
    found: dict[tuple[str, str, str], TaskReport] = {}
    for task in (task for report in reports for task in report.tasks):
        key = task.phase, task.kind, task.resource
        known = found.get(key)
        found[key] = known + task if known else task
    yield from (found[key] for key in sorted(found))


def _tiers(reports: Sequence[RunReport]) -> Iterator[TierReport]:
    """Sums of all ranks; a peak is known where that of every rank is."""
    rows: dict[str, list[TierReport]] = {}
    for row in (row for report in reports for row in report.memory):
        rows.setdefault(row.tier, []).append(row)
    for tier, own in rows.items():
        peaks = [row.measured_peak_bytes for row in own]
        yield TierReport(
            tier=tier,
            ledger_bytes=sum(row.ledger_bytes for row in own),
            limit_bytes=sum(row.limit_bytes for row in own),
            measured_peak_bytes=None if None in peaks else sum(peak or 0 for peak in peaks),
        )
