"""Deadline: whether a job is done in time, the least memory that does it, and what would bring it where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile
from hwprofiles.units import MIB, format_bytes, format_duration
from planner.machine import Caps, make_target
from planner.machine_change import unit_changes
from planner.plan import Plan
from planner.policy import Tier
from planner.problem import Problem
from planner.request import BitsChoice, Request
from planner.search import Reporter, search

_PRECISION = 1 / 64
"""Of the least memory: caps nearer to each other are not told apart."""
_MOST_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """A job, the machine that is to do it, and how long that may take."""

    problem: Problem
    request: Request
    profile: HardwareProfile
    caps: Caps
    """With the profile they make the problem's limits."""
    finish_in_s: float

    def __post_init__(self) -> None:
        if self.problem.workload.num_prompts is None:
            raise UserError(
                "a deadline is for a job; say how large it is with --input FILE or --num-prompts N"
            )

    def under(self, caps: Caps) -> Problem:
        """The problem under other caps."""
        return replace(self.problem, target=make_target(self.profile, caps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """A job that is done in time."""

    plan: Plan
    """With the least memory: first of the host's, then of the GPU's."""
    fastest: Plan
    """With all there is."""
    least: dict[Tier, int]
    """Bytes, as `--cpu-mem` and `--gpu-mem` are given; with these the search finds the plan again."""


def job_s(plan: Plan) -> float:
    """Seconds of the whole job, of a plan that is for one."""
    assert plan.job is not None
    return plan.job.seconds


def finish_in(deadline: Deadline, fastest: Plan, report: Reporter = lambda _: None) -> Finish | None:
    """The plan that is done in time with least memory; None where not even `fastest`, which has all, is.

    The least is found by halving the caps between none and all, each tried by a search; that more memory is never
    slower is taken for granted.
    """
    if job_s(fastest) > deadline.finish_in_s:
        return None
    plan, caps, least = fastest, deadline.caps, dict[Tier, int]()
    target = deadline.problem.target
    totals: dict[Tier, int] = {"cpu": target.cpu_bytes + target.headroom_bytes}
    if target.compute_tier == "gpu":
        totals["gpu"] = target.gpu_bytes
    for tier, total in totals.items():
        least[tier], plan = _least(total, _Trial(deadline, caps, tier, report), plan)
        caps = _capped(caps, tier, least[tier])
    return Finish(plan=plan, fastest=fastest, least=least)


def _capped(caps: Caps, tier: Tier, num_bytes: int) -> Caps:
    return replace(caps, cpu_bytes=num_bytes) if tier == "cpu" else replace(caps, gpu_bytes=num_bytes)


@dataclass(frozen=True, slots=True)
class _Trial:
    """Called with a cap on a tier: the plan that is done in time under it, if there is one."""

    deadline: Deadline
    caps: Caps
    tier: Tier
    report: Reporter

    def __call__(self, num_bytes: int) -> Plan | None:
        self.report(f"in time with {format_bytes(num_bytes)} on {self.tier}?")
        problem = self.deadline.under(_capped(self.caps, self.tier, num_bytes))
        found = search(problem, self.deadline.request)
        return found if found and job_s(found) <= self.deadline.finish_in_s else None


def _least(total: int, trial: _Trial, plan: Plan) -> tuple[int, Plan]:
    """The least cap that does, in whole MiB, with its plan; `plan` is that of all, `total`.

    Halving goes on by the same cuts whatever is asked, so that more time never comes out with more memory.
    """
    low, high = 0, -(-total // MIB)
    while high - low > max(1, high * _PRECISION):
        middle = (low + high) // 2
        found = trial(middle * MIB)
        if found:
            high, plan = middle, found
        else:
            low = middle
    return min(high * MIB, total), plan


def explain_lateness(deadline: Deadline, fastest: Plan, report: Reporter = lambda _: None) -> str:
    """One line: how long the job takes at best, and each single change with which a search finds it done in time."""
    problem, finish_in_s = deadline.problem, deadline.finish_in_s
    tried = sorted(_changes(deadline, report))
    enough = [(seconds, text) for seconds, text in tried if seconds <= finish_in_s]
    best, given = format_duration(job_s(fastest)), format_duration(finish_in_s)
    late = f"{problem.workload.num_prompts} prompts take {best} at best on {problem.target.name}, {given} are given"
    if enough:
        named = ", or ".join(f"{text} ({format_duration(seconds)})" for seconds, text in enough[:_MOST_NAMED])
        return f"{late}; in time with {named}"
    nearest = [(seconds, text) for seconds, text in tried[:1] if seconds < job_s(fastest)]
    hint = "".join(f", nearest is {text} with {format_duration(seconds)}" for seconds, text in nearest)
    return f"{late}; no single change that was tried brings it{hint}: give more time or fewer prompts"


def _changes(deadline: Deadline, report: Reporter) -> Iterator[tuple[float, str]]:
    """Seconds of the job with each change, as its flags."""
    for text, problem, request in _changed(deadline):
        report(f"in time with {text}?")
        found = search(problem, request)
        if found:
            yield job_s(found), text


def _changed(deadline: Deadline) -> Iterator[tuple[str, Problem, Request]]:
    """Fewer bits than asked for, then a unit more of each thing that the machine has."""
    problem, request = deadline.problem, deadline.request
    options: tuple[tuple[BitsChoice, BitsChoice, str], ...] = (
        (request.weight_bits, "4", "--kv-bits 4"),
        ("4", request.kv_bits, "--weight-bits 4"),
        ("4", "4", "--weight-bits 4 --kv-bits 4"),
    )
    for weight_bits, kv_bits, flags in options:
        changed = replace(request, weight_bits=weight_bits, kv_bits=kv_bits)
        if changed != request:
            yield flags, problem, changed
    for changes in unit_changes(problem):
        if not any(change.is_bound for change in changes):
            machine = problem
            for change in changes:
                machine = change.apply(machine)
            yield ",".join(change.text for change in changes), machine, request
