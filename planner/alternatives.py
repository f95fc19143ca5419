"""Alternatives: a plan with one thing done otherwise, all else left as it is: a larger block, attention elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from planner.advise import with_batch
from planner.plan import Plan
from planner.policy import Policy, Tier
from planner.problem import Problem
from planner.search import score

_LARGER = 8
"""A larger gpu batch has one row in so many more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """What a change of the policy would bring, and what it lacks."""

    what: str
    gain: float
    """Of the plan's tokens per second, as a fraction, whether or not it fits."""
    lacking_bytes: Mapping[Tier, int]
    """By tier; empty where it fits."""


def alternatives(problem: Problem, plan: Plan) -> tuple[Alternative, ...]:
    """A larger block, and all or none of the rows off the GPU attended on the CPU."""
    before = score(problem, plan)
    found = []
    for what, policy in _changes(problem, plan.policy):
        other = problem.plan(policy)
        found.append(
            Alternative(
                what=what,
                gain=score(problem, other) / before - 1,
                lacking_bytes=other.ledger.shortfalls(problem.target),
            )
        )
    return tuple(found)


def _changes(problem: Problem, policy: Policy) -> Iterator[tuple[str, Policy]]:
    more = policy.num_gpu_batches + 1
    yield f"a gpu batch more ({policy.gpu_batch_size} x {more})", replace(policy, num_gpu_batches=more)
    size = policy.gpu_batch_size + max(1, policy.gpu_batch_size // _LARGER)
    yield f"larger gpu batches ({size} x {policy.num_gpu_batches})", with_batch(policy, size)
    if problem.target.compute_tier != "gpu" or not problem.model.cpu_attention or policy.cache.gpu == 1:
        return
    if policy.cpu_attention < 1:
        yield "all rows off the GPU attended on the CPU", replace(policy, cpu_attention=1.0)
    if policy.cpu_attention > 0:
        yield "all rows loaded to the GPU", replace(policy, cpu_attention=0.0)
