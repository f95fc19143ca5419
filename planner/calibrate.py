"""Calibrate: factors on the profile's rates that bring predictions nearest to what runs measured.

The measured values of the profile stay as they are. A factor multiplies the predicted seconds of a resource, of one
kind of its tasks, of launching kernels and of handing tasks to threads, of work that shares cores, or of a phase.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from hwprofiles.errors import UserError
from hwprofiles.profile import Calibration, HardwareProfile
from planner.calibrate_fit import Fit, Fitting
from planner.calibrate_runs import Run, folds_of
from planner.factors import Factors
from planner.plan import Phase
from planner.rates import Rates, make_rates
from planner.report import RunReport
from planner.same_machine import check_report
from planner.stage_rates import stage_rates


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseError:
    """One phase of one run, predicted by the profile as it was and as it is now."""

    report: RunReport
    phase: Phase
    measured_s: float
    before_s: float
    after_s: float
    weight: float
    """1, or less for an outlier; the whole run counted no more than its least phase."""

    @property
    def is_outlier(self) -> bool:
        """Far from what the other runs say."""
        return self.weight < 1

    @property
    def error_before(self) -> float:
        """Relative, as a fraction."""
        return abs(self.before_s - self.measured_s) / self.measured_s

    @property
    def error_after(self) -> float:
        """Relative, as a fraction."""
        return abs(self.after_s - self.measured_s) / self.measured_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The calibrated profile, and how well it predicts runs that it did not learn from."""

    profile: HardwareProfile
    calibration: Calibration
    """The profile's."""
    phases: tuple[PhaseError, ...]
    """Of each report in turn; `after_s` is by a fit to the other folds, or without folds by the fit itself."""


def calibrate(profile: HardwareProfile, reports: Sequence[RunReport], *, force: bool = False) -> Outcome:
    """Fit one set of factors to all reports; a UserError for a report of another host unless forced."""
    for report in reports:
        check_report(profile, report, force=force)
    runs = [run for report in reports for leg in report.legs if (run := run_on(profile, leg)).measured]
    if not runs:
        raise UserError("no report has a phase that was run; run at least one block")
    before = profile.calibration.factors if profile.calibration else {}
    fitting = Fitting({}, runs)
    folds = folds_of(runs)
    whole = fitting.fit(range(len(runs)))
    by_fold = [whole.factors]
    if len(folds) > 1:
        by_fold = [fitting.fit(_without(folds, fold), start=whole).factors for fold in folds]
    used = {n: factors for fold, factors in zip(folds, by_fold, strict=True) for n in fold}
    phases = [
        error for n, run in enumerate(runs) for error in _errors(run, before, used[n], whole.weights[n])
    ]
    return _outcome(profile, whole, phases, num_folds=len(folds) if len(folds) > 1 else 0)


def run_on(profile: HardwareProfile, report: RunReport) -> Run:
    """A report as a run of a profile's machine; of a pipeline, ranks on other hosts keep the rates in their plan."""
    plan = report.plan
    if not plan.stages:
        return Run(report, [make_rates(profile, plan.model.dtype)])
    ranks = range(len(plan.stages))
    here = {rank.rank for rank in report.ranks if rank.fingerprint == profile.fingerprint} or set(ranks)
    found = stage_rates(plan, profile)
    rates = [found[rank] if rank in here else plan.of_rank(rank).known_rates() for rank in ranks]
    return Run(report, rates, here)


def corrected(report: RunReport) -> Rates:
    """The rates of the plan that was run, their factors moved as far as this run speaks for."""
    known = report.plan.known_rates()
    moved = Fitting(known.factors, [Run(report, [known])]).fit([0])
    return known.calibrated({**known.factors, **moved.factors})


def _without(folds: Sequence[Sequence[int]], left_out: Sequence[int]) -> list[int]:
    return sorted(n for fold in folds if fold is not left_out for n in fold)


def _errors(
    run: Run, known: Factors, factors: Factors, weights: Mapping[Phase, float]
) -> Iterator[PhaseError]:
    """Each phase with the factors as they are, and with other ones."""
    before, after = (run.phase_s(run.predict(used)) for used in (known, factors))
    for phase, measured in run.measured.items():
        yield PhaseError(
            report=run.report,
            phase=phase,
            measured_s=measured,
            before_s=before[phase],
            after_s=after[phase],
            weight=weights[phase],
        )


def _outcome(
    profile: HardwareProfile, fitted: Fit, phases: Sequence[PhaseError], *, num_folds: int
) -> Outcome:
    calibration = Calibration(
        factors=fitted.factors,
        num_runs=len(fitted.weights),
        error_before=median(error.error_before for error in phases),
        error_after=median(error.error_after for error in phases),
        worst_before=max(error.error_before for error in phases),
        worst_after=max(error.error_after for error in phases),
        num_folds=num_folds,
        num_outliers=sum(min(weights.values()) < 1 for weights in fitted.weights),
    )
    return Outcome(
        profile=replace(profile, calibration=calibration), calibration=calibration, phases=tuple(phases)
    )
