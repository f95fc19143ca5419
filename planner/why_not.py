"""Why not: a policy that a user prefers beside a plan, and the sentence that says why the plan is another one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from hwprofiles.units import format_seconds
from planner.advise import advice, check_policy
from planner.compare import Line, decided_lines
from planner.cost import HOST
from planner.plan import PHASES, Phase, Plan
from planner.policy import Policy, Tier
from planner.pricing import NOT_RUN
from planner.problem import Problem
from planner.realise import is_quick_enough
from planner.request import Request
from planner.search import DISK_WORTH_IT, WORTH_IT, has_disk, score, worth

_SAME = 5e-4
"""Relative differences of throughput below this are not told apart."""
_EXPLAINS = 0.5
"""Of the extra time of a phase, the share of extra work of one resource that explains it."""
_NAMED = 0.05
"""Of a phase's extra time, the share of a kind of task that is worth a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyNot:
    """A preferred policy beside a plan."""

    policy: Policy
    lacking_bytes: Mapping[Tier, int]
    """By tier; empty where it fits."""
    tokens_per_s: float
    """Whether or not it fits."""
    gain: float
    """Of the plan's tokens per second, as a fraction; negative: slower."""
    lines: tuple[Line, ...]
    """The plan on the left, the preferred policy on the right."""
    verdict: str


def why_not(problem: Problem, plan: Plan, policy: Policy) -> WhyNot:
    """The comparison; a UserError where the policy asks for what the machine or the model does not have."""
    check_policy(problem, policy)
    other = problem.plan(policy)
    rate = score(problem, other)
    gain = rate / score(problem, plan) - 1
    return WhyNot(
        policy=policy,
        lacking_bytes=other.ledger.shortfalls(problem.target),
        tokens_per_s=rate,
        gain=gain,
        lines=decided_lines(plan, other),
        verdict=_verdict(problem, plan, other, gain),
    )


def _verdict(problem: Problem, plan: Plan, other: Plan, gain: float) -> str:
    if other.policy == plan.policy:
        return "It is the plan's own policy: there is no difference."
    short = other.ledger.shortfalls(problem.target)
    if short:
        lacks = "; ".join(other.ledger.explain(tier, problem.target) for tier in short)
        return f"It does not fit: {lacks}. {advice(problem, other.policy)}. {_if_it_fitted(gain)}"
    if gain > _SAME:
        return f"It fits and is {100 * gain:.1f}% faster: {_missed(problem, plan, other, gain)}."
    if gain >= -_SAME:
        return "It fits and is as fast as the plan."
    return f"It fits but is {-100 * gain:.1f}% slower. {_slower(problem, plan, other)}"


def _if_it_fitted(gain: float) -> str:
    if abs(gain) <= _SAME:
        return "With enough memory it would be as fast as the plan."
    return f"With enough memory it would be {abs(100 * gain):.1f}% {'faster' if gain > 0 else 'slower'}."


def _missed(problem: Problem, plan: Plan, other: Plan, gain: float) -> str:
    """Why a faster policy is not the plan's."""
    if plan.request is None:
        return "the plan's own policy was given, not searched for; planner search finds the fastest"
    excluded = _excluded(plan.request, other)
    if excluded:
        return f"the plan was searched for with {excluded}, which excludes it"
    if gain <= WORTH_IT:
        return f"of policies within {100 * WORTH_IT:g}% of each other the search takes the simplest"
    if worth(problem, other) <= worth(problem, plan):
        if has_disk(other) and not has_disk(plan):
            return f"the search uses a disk where that brings {100 * DISK_WORTH_IT:g}% or more"
        return (
            "the search counts on a host that is slower at times, for which decode as CUDA graphs waits less"
        )
    return "the search has missed it"


def _excluded(request: Request, other: Plan) -> str | None:
    """The flag that keeps a policy out."""
    policy = other.policy
    if request.weight_bits not in ("auto", str(policy.weight_bits)):
        return f"--weight-bits {request.weight_bits}"
    if request.kv_bits not in ("auto", str(policy.kv_bits)):
        return f"--kv-bits {request.kv_bits}"
    attended = {"off": policy.cpu_attention == 0, "on": policy.cpu_attention == 1, "auto": True}
    if not attended[request.cpu_attention]:
        return f"--cpu-attention {request.cpu_attention}"
    return None if is_quick_enough(other, request) else f"--max-latency {request.max_latency_s:g}"


def _slower(problem: Problem, plan: Plan, other: Plan) -> str:
    """The phase that takes longest beyond the plan's, and the work that it has more of."""
    prompts = problem.workload.num_prompts or plan.policy.block_size
    ours, theirs = _Scaled(plan, prompts), _Scaled(other, prompts)
    phase = max(PHASES, key=lambda phase: theirs.seconds(phase) - ours.seconds(phase))
    extra = theirs.seconds(phase) - ours.seconds(phase)
    binding = other.prediction.of(phase).binding
    start = f"For {prompts} sequences its {phase} takes {format_seconds(extra)} more"
    if binding == NOT_RUN:
        return f"{start}."
    work = theirs.busy_s(phase, binding) - ours.busy_s(phase, binding)
    if work >= _EXPLAINS * extra:
        most, seconds = theirs.most_added(phase, binding, ours)
        named = f", above all {most}: {format_seconds(seconds)} more" if seconds > _NAMED * extra else ""
        return f"{start}, because {binding}, which binds it, has {format_seconds(work)} more work{named}."
    before = plan.prediction.of(phase).binding
    return (
        f"{start}, because less of it overlaps: {binding}, which binds it, is at work "
        f"{_percent(theirs.share(phase, binding))} of it, in the plan {before} {_percent(ours.share(phase, before))}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


class _Scaled:
    """A plan's seconds for all prompts, or for as many sequences as another plan's block where their number is open."""

    def __init__(self, plan: Plan, prompts: int) -> None:
        self.prediction = plan.prediction
        self.blocks = dict.fromkeys(PHASES, prompts / plan.policy.block_size)
        """Full blocks that take as long, for each phase."""
        for phase, job_s in zip(
            PHASES, (plan.job.prefill_s, plan.job.decode_s) if plan.job else (), strict=False
        ):
            block_s = plan.prediction.of(phase).seconds
            self.blocks[phase] = job_s / block_s if block_s else 0.0

    def seconds(self, phase: Phase) -> float:
        """Of a phase."""
        return self.prediction.of(phase).seconds * self.blocks[phase]

    def busy_s(self, phase: Phase, resource: str) -> float:
        """Of a resource at work in a phase."""
        return self.prediction.of(phase).busy_s.get(resource, 0.0) * self.blocks[phase]

    def share(self, phase: Phase, resource: str) -> float:
        """Of a phase's time in which a resource is at work."""
        seconds = self.seconds(phase)
        return self.busy_s(phase, resource) / seconds if seconds else 0.0

    def most_added(self, phase: Phase, resource: str, than: _Scaled) -> tuple[str, float]:
        """The kind of task on a resource that takes most seconds more, and how many.

        No task is said to be on host memory, or on the thread that issues a GPU's work: on the one are all tasks
        but the GPU's, on the other those.
        """
        added: defaultdict[str, float] = defaultdict(float)
        for scaled, sign in ((self, 1), (than, -1)):
            for task in scaled.prediction.tasks:
                is_gpu = task.resource == "gpu"
                on_it = {"cpu_mem": not is_gpu, HOST: is_gpu}.get(resource, task.resource == resource)
                if task.phase == phase and on_it:
                    added[f"{task.kind} on {task.resource}"] += sign * task.seconds * scaled.blocks[phase]
        return max(added.items(), key=lambda item: item[1], default=("", 0.0))
