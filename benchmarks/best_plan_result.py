"""What benchmarks.best_plan found. The contract of benchmarks/results/best-plan/*.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.setting import Setting
from hwprofiles.errors import UserError
from planner.plan import Plan
from planner.report import RunReport

CHOSEN = "chosen"


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenPolicy:
    """A policy to hold the chosen one against, such as a published one."""

    percent: str
    """FlexGen's six: weights, cache and activations on gpu and cpu."""
    batch: str
    """gpu batch size x number of gpu batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestPlanCase:
    """A search whose plan is to be held against others."""

    planner: str
    """Flags of `planner search`."""
    given: Mapping[str, GivenPolicy] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRuns:
    """A plan and its runs."""

    label: str
    policy: str
    predicted_tokens_per_s: float
    measured_tokens_per_s: Sequence[float]
    """Round by round."""

    @property
    def tokens_per_s(self) -> float:
        """Of the median round."""
        return median(self.measured_tokens_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRuns:
    """All plans of a case, the fastest first."""

    case: str
    plans: Sequence[PlanRuns]

    @property
    def share(self) -> float:
        """The chosen plan's rate over the fastest plan's."""
        (chosen,) = (plan for plan in self.plans if plan.label == CHOSEN)
        return chosen.tokens_per_s / max(plan.tokens_per_s for plan in self.plans)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestPlan:
    """All cases of a machine."""

    setting: Setting
    cases: Mapping[str, BestPlanCase]
    found: Sequence[CaseRuns]


def summed_up(
    cases: Mapping[str, BestPlanCase],
    reports: Mapping[str, Mapping[str, Sequence[RunReport]]],
    setting: Setting,
) -> BestPlan:
    """The result of these runs, by case and plan; a UserError where the chosen plan or all others were not run."""
    for name, plans in reports.items():
        if CHOSEN not in plans or len(plans) < 2:
            raise UserError(
                f"{name}: {len(plans)} plans were run; the chosen one and at least one other are needed"
            )
    return BestPlan(
        setting=setting,
        cases=cases,
        found=[case_runs(name, plans) for name, plans in reports.items()],
    )


def case_runs(name: str, reports: Mapping[str, Sequence[RunReport]]) -> CaseRuns:
    """Plans of a case by their median rate."""
    plans = [_plan_runs(label, runs) for label, runs in reports.items()]
    return CaseRuns(case=name, plans=sorted(plans, key=lambda plan: -plan.tokens_per_s))


def predicted_rate(plan: Plan) -> float:
    """Generated tokens per second of the whole job, or of a block where the number of prompts is open."""
    return (plan.job or plan.prediction).throughput_tokens_per_s


def _plan_runs(label: str, runs: Sequence[RunReport]) -> PlanRuns:
    policy = runs[0].plan.policy
    words = [f"{policy.gpu_batch_size} x {policy.num_gpu_batches}"]
    words += [
        f"{name} {split}"
        for name, split in (("w", policy.weights), ("c", policy.cache), ("a", policy.activations))
    ]
    if policy.cpu_attention:
        words.append(f"attended on the CPU {policy.cpu_attention:.0%}")
    return PlanRuns(
        label=label,
        policy="; ".join(words),
        predicted_tokens_per_s=predicted_rate(runs[0].plan),
        measured_tokens_per_s=[run.throughput_tokens_per_s or 0.0 for run in runs],
    )
