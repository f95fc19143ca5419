"""What benchmarks.accuracy found. The contract of benchmarks/results/accuracy/*.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.setting import Setting
from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile
from planner.calibrate import calibrate, run_on
from planner.plan import Phase
from planner.report import RunReport

EVERY = 3
"""Of the runs, one in so many calibrates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyCase:
    """A plan to be made and run; with percents it is given, without them searched."""

    planner: str
    """Flags of the planner's command."""
    percent: str | None = None
    """FlexGen's six: weights, cache and activations on gpu and cpu."""
    batch: str = "1 x 1"
    """gpu batch size x number of gpu batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One phase of one run."""

    case: str
    phase: Phase
    measured_s: float
    predicted_s: float
    """By the plan that was run, from the profile alone."""
    today_s: float
    """By the formulas and the profile with which the runs are summed up, which may be newer."""
    calibrated_s: float | None
    """By the profile calibrated on other runs; None for those runs themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One tier of one run."""

    case: str
    tier: str
    ledger_bytes: int
    measured_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """Of |predicted / measured - 1|."""

    median: float
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """All runs of a machine."""

    setting: Setting
    cases: Mapping[str, AccuracyCase]
    from_the_profile: Error
    today: Error
    calibrated: Error
    rows: Sequence[Row]
    memory: Sequence[Memory]
    num_rounds: int = 1
    """Of a case, at least; the middle one counts."""
    most_rounds: int | None = None
    """Of a case; None: as many as of any other."""


def median_round(reports: Sequence[RunReport]) -> RunReport:
    """By the time of all phases; of an even number the faster one."""
    ordered = sorted(reports, key=lambda report: sum(phase.measured_s for phase in report.phases))
    return ordered[(len(ordered) - 1) // 2]


def summed_up(
    cases: Mapping[str, AccuracyCase],
    reports: Mapping[str, RunReport],
    profile: HardwareProfile,
    setting: Setting,
    num_rounds: tuple[int, int] = (1, 1),
) -> Accuracy:
    """The result of these runs; a UserError for fewer than two, of which one calibrates for the other.

    `num_rounds`: of a case with the fewest rounds, and with the most.
    """
    if len(reports) < 2:
        raise UserError(f"{len(reports)} runs cannot be held against each other; run at least 2 cases")
    rows = list(_rows(reports, profile))
    return Accuracy(
        setting=setting,
        cases=cases,
        from_the_profile=error_of([row.predicted_s / row.measured_s for row in rows]),
        today=error_of([row.today_s / row.measured_s for row in rows]),
        calibrated=error_of([row.calibrated_s / row.measured_s for row in rows if row.calibrated_s]),
        rows=rows,
        memory=list(_memory(reports)),
        num_rounds=num_rounds[0],
        most_rounds=num_rounds[1],
    )


def _rows(reports: Mapping[str, RunReport], profile: HardwareProfile) -> Iterator[Row]:
    """Each phase that was run, predicted by the profile and by one calibrated on a third of the runs."""
    known = set(list(reports)[::EVERY])
    outcome = calibrate(profile, [reports[name] for name in known])
    calibrated, calibration = outcome.profile, outcome.calibration
    for name, report in reports.items():
        run = run_on(calibrated, report)
        again = run.phase_s(run.predict(calibration.factors))
        today = run_on(profile, report)
        today_s = today.phase_s(today.predict({}))
        for phase in report.phases:
            if phase.tokens:
                yield Row(
                    case=name,
                    phase=phase.phase,
                    measured_s=phase.measured_s,
                    predicted_s=phase.predicted_s,
                    today_s=today_s[phase.phase],
                    calibrated_s=None if name in known else again[phase.phase],
                )


def _memory(reports: Mapping[str, RunReport]) -> Iterator[Memory]:
    """Each tier whose peak could be told apart."""
    for name, report in reports.items():
        for tier in report.memory:
            if tier.measured_peak_bytes is not None:
                yield Memory(
                    case=name,
                    tier=tier.tier,
                    ledger_bytes=tier.ledger_bytes,
                    measured_bytes=tier.measured_peak_bytes,
                )


def error_of(ratios: Sequence[float]) -> Error:
    """Of predicted over measured times; nothing of none."""
    found = [abs(ratio - 1) for ratio in ratios] or [0.0]
    return Error(median=median(found), worst=max(found))
