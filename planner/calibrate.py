"""Calibrate: factors on the profile's rates that bring predictions nearest to what runs measured.

The measured values of the profile stay as they are. Each factor multiplies the predicted seconds of one
resource, of launching kernels ("launch") and handing tasks to threads ("handover"), of work that shares cores
and memory ("contention"), or of a phase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from hwprofiles.errors import UserError
from hwprofiles.profile import Calibration, HardwareProfile
from planner.ledger import Sizes
from planner.machine import CONTENTION, HANDOVER, LAUNCH, make_rates
from planner.plan import PHASES, Phase, Prediction
from planner.pricing import price
from planner.report import RunReport

_TOWARDS_ONE = 0.01
"""Weight of a factor's distance from 1 beside the measurements, whose weights sum to 1 in each phase."""
_LARGEST_FACTOR = 100.0
_DIGITS = 4
Factors = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseError:
    """One phase of one run, predicted by the profile as it was and as it is now."""

    phase: Phase
    measured_s: float
    before_s: float
    after_s: float

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
    """The calibrated profile, and how well it predicts the runs it learned from."""

    profile: HardwareProfile
    phases: tuple[PhaseError, ...]
    """Of each report in turn."""
    held_out: bool
    """`after_s` of each run comes from a fit to the other runs."""


def calibrate(profile: HardwareProfile, reports: Sequence[RunReport], *, force: bool = False) -> Outcome:
    """Fit one set of factors to all reports; a UserError for a report of another host unless forced."""
    runs = [_Run(report) for report in reports]
    for run in runs:
        _check(profile, run.report, force)
    factors = _fit(profile, runs)
    held_out = len(runs) > 1
    phases = tuple(
        error
        for index, run in enumerate(runs)
        for error in run.errors(
            profile, _fit(profile, runs[:index] + runs[index + 1 :]) if held_out else factors
        )
    )
    if not phases:
        raise UserError("no report has a phase that was run; run at least one block")
    calibration = Calibration(
        factors=factors,
        num_runs=len(runs),
        error_before=median(error.error_before for error in phases),
        error_after=median(error.error_after for error in phases),
    )
    return Outcome(profile=replace(profile, calibration=calibration), phases=phases, held_out=held_out)


def _check(profile: HardwareProfile, report: RunReport, force: bool) -> None:
    if bool(profile.gpus) != (report.plan.hardware.compute_tier == "gpu"):
        raise UserError(
            f"the report of {report.created} computed on {report.plan.hardware.compute_tier}, "
            f"profile {profile.name} does not; give the profile it was planned with"
        )
    if report.fingerprint != profile.fingerprint and not force:
        raise UserError(
            f"the report of {report.created} comes from a host with fingerprint {report.fingerprint}, "
            f"profile {profile.name} describes {profile.fingerprint or 'no host in particular'}; "
            "give a report of that host, or --force"
        )


class _Run:
    """One report, ready to be predicted again under other factors."""

    def __init__(self, report: RunReport) -> None:
        plan = report.plan
        self.report, self.dtype = report, plan.model.dtype
        tier = plan.hardware.compute_tier
        self.sizes = Sizes(plan.model.spec(), plan.workload, plan.policy, plan.placement, tier)
        planned = {"prefill": plan.prediction.prefill.seconds, "decode": plan.prediction.decode.seconds}
        run = [phase for phase in report.phases if phase.measured_s > 0 and planned[phase.phase] > 0]
        self.measured = {phase.phase: phase.measured_s for phase in run}
        self.scale = {phase.phase: phase.predicted_s / planned[phase.phase] for phase in run}

    def predict(self, profile: HardwareProfile, factors: Factors) -> Prediction:
        """One full block under these factors."""
        return price(self.sizes, make_rates(_with_factors(profile, factors), self.dtype))

    def phase_s(self, prediction: Prediction) -> dict[Phase, float]:
        """Seconds of each phase that was run, of as many blocks as were run."""
        seconds = {"prefill": prediction.prefill.seconds, "decode": prediction.decode.seconds}
        return {phase: seconds[phase] * self.scale[phase] for phase in PHASES if phase in self.measured}

    def resources(self) -> set[str]:
        """Those that were measured."""
        return {task.resource for task in self.report.tasks if task.measured_s > 0}

    def residuals(self, prediction: Prediction) -> list[float]:
        """log(predicted / measured) of each kind of task, by its share of seconds, and of each phase."""
        phases = self.phase_s(prediction).items()
        found = [math.log(seconds / self.measured[phase]) for phase, seconds in phases]
        predicted = {(task.phase, task.kind, task.resource): task.seconds for task in prediction.tasks}
        for phase in self.measured:
            tasks = [task for task in self.report.tasks if task.phase == phase and task.measured_s > 0]
            total = sum(task.measured_s for task in tasks)
            for task in tasks:
                seconds = predicted.get((phase, task.kind, task.resource), 0.0) * self.scale[phase]
                if seconds > 0:
                    found.append(math.sqrt(task.measured_s / total) * math.log(seconds / task.measured_s))
        return found

    def errors(self, profile: HardwareProfile, factors: Factors) -> list[PhaseError]:
        """Each phase before and after."""
        old = profile.calibration.factors if profile.calibration else {}
        before, after = self.phase_s(self.predict(profile, old)), self.phase_s(self.predict(profile, factors))
        return [
            PhaseError(phase=phase, measured_s=measured, before_s=before[phase], after_s=after[phase])
            for phase, measured in self.measured.items()
        ]


def _with_factors(profile: HardwareProfile, factors: Factors) -> HardwareProfile:
    return replace(
        profile, calibration=Calibration(factors=factors, num_runs=1, error_before=0.0, error_after=0.0)
    )


def _fit(profile: HardwareProfile, runs: Sequence[_Run]) -> dict[str, float]:
    """Least squares on logarithms over resources, overheads and contention; then what is left of a phase."""
    names = [*sorted(set().union(*(run.resources() for run in runs))), LAUNCH, HANDOVER, CONTENTION]

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        factors = dict(zip(names, np.exp(logs).tolist(), strict=True))
        found = [value for run in runs for value in run.residuals(run.predict(profile, factors))]
        return np.array([*found, *(math.sqrt(_TOWARDS_ONE) * logs)])

    bound = math.log(_LARGEST_FACTOR)
    answer = least_squares(residuals, np.zeros(len(names)), bounds=(-bound, bound), loss="soft_l1")
    factors = dict(zip(names, np.exp(answer.x).tolist(), strict=True))
    factors |= _phase_factors(profile, runs, factors)
    return {name: round(value, _DIGITS) for name, value in factors.items()}


def _phase_factors(profile: HardwareProfile, runs: Sequence[_Run], factors: Factors) -> dict[str, float]:
    """The geometric mean of measured / predicted, for each phase."""
    ratios: dict[str, list[float]] = {}
    for run in runs:
        for phase, seconds in run.phase_s(run.predict(profile, factors)).items():
            ratios.setdefault(phase, []).append(math.log(run.measured[phase] / seconds))
    return {phase: math.exp(mean(logs)) for phase, logs in ratios.items()}
