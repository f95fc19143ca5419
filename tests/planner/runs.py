"""Run reports of runs that never happened: a plan's own prediction on a machine that is slower than its profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from hwprofiles.profile import Calibration, HardwareProfile
from planner.machine import Caps
from planner.model import ModelSpec
from planner.plan import PHASES, Phase, Prediction
from planner.policy import Policy
from planner.problem import Problem, make_problem
from planner.report import SCHEMA_VERSION, PhaseReport, RunReport, TaskReport, TierReport
from planner.workload import Workload
from tests.planner.problems import small_opt


def with_factors(profile: HardwareProfile, factors: Mapping[str, float]) -> HardwareProfile:
    """A machine on which predictions come out multiplied by these."""
    calibration = Calibration(factors=factors, num_runs=1, error_before=0.0, error_after=0.0)
    return replace(profile, calibration=calibration)


def problem_on(profile: HardwareProfile, model: ModelSpec | None = None, prompt_len: int = 64) -> Problem:
    """A small model on this machine."""
    workload = Workload(prompt_len=prompt_len, gen_len=5)
    return make_problem(model or small_opt(), workload, profile, Caps())


def report_of(
    profile: HardwareProfile,
    policy: Policy,
    factors: Mapping[str, float],
    *,
    scale: float = 1.0,
    model: ModelSpec | None = None,
    prompt_len: int = 64,
) -> RunReport:
    """What a run of this policy reports on a machine slower by `factors`; `scale` blocks of it."""
    plan = problem_on(profile, model, prompt_len).draft(policy)
    really = problem_on(with_factors(profile, factors), model, prompt_len).draft(policy).prediction
    predicted_tasks = {(t.phase, t.kind, t.resource): t for t in plan.prediction.tasks}
    return RunReport(
        schema_version=SCHEMA_VERSION,
        plan_digest=plan.digest(),
        model_name=plan.model.name,
        fingerprint=profile.fingerprint,
        hardware_digest=plan.hardware.digest,
        created="2026-11-22T00:00:00+00:00",
        num_blocks=1,
        num_requests=policy.block_size,
        prompt_tokens=policy.block_size * 64,
        generated_tokens=policy.block_size * 5,
        padding_tokens=0,
        phases=tuple(
            PhaseReport(
                phase=phase,
                predicted_s=seconds_of(plan.prediction, phase) * scale,
                measured_s=seconds_of(really, phase) * scale,
                tokens=1,
                tokens_per_s=1.0,
            )
            for phase in PHASES
        ),
        throughput_tokens_per_s=1.0,
        predicted_throughput_tokens_per_s=1.0,
        overlap=1.0,
        binding=dict.fromkeys(PHASES, "gpu"),
        tasks=tuple(
            TaskReport(
                phase=task.phase,
                kind=task.kind,
                resource=task.resource,
                count=task.count,
                num_bytes=round(task.num_bytes),
                flops=task.flops,
                predicted_s=predicted_tasks[task.phase, task.kind, task.resource].seconds * scale,
                measured_s=task.seconds * scale,
            )
            for task in really.tasks
        ),
        memory=(
            TierReport(tier="gpu", ledger_bytes=1, limit_bytes=1, measured_peak_bytes=1),
            TierReport(tier="cpu", ledger_bytes=1, limit_bytes=1, measured_peak_bytes=None),
        ),
        plan=plan,
    )


def times(report: RunReport, draw: Callable[[], float]) -> RunReport:
    """The report with each measured time multiplied by a number drawn for it."""
    return replace(
        report,
        phases=tuple(replace(phase, measured_s=phase.measured_s * draw()) for phase in report.phases),
        tasks=tuple(replace(task, measured_s=task.measured_s * draw()) for task in report.tasks),
    )


def seconds_of(prediction: Prediction, phase: Phase) -> float:
    """Of one phase."""
    return (prediction.prefill if phase == "prefill" else prediction.decode).seconds
