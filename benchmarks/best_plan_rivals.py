"""Rivals of a chosen plan: its neighbours in every variable, simple baselines, and policies that somebody gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from planner.plan import Plan
from planner.policy import Policy, Split, Tier
from planner.problem import Problem

STEP = 0.15
"""The share of weights, cache or activations that a neighbour has on another tier."""
SIZES = (0.4, 0.6, 0.8, 1.25, 1.5, 2.0)
"""A neighbour's gpu batch size, as a multiple."""
FALL = 0.8
"""A rival that does not fit is tried with gpu batches this much smaller until it does."""


def rivals(chosen: Plan, given: Mapping[str, Policy]) -> dict[str, Plan]:
    """Plans by what they do otherwise; each fits, with smaller gpu batches where it has to, and no two are the same."""
    problem = Problem(
        model=chosen.model.spec(),
        workload=chosen.workload,
        target=chosen.hardware,
        rates=chosen.known_rates(),
    )
    found: dict[str, Plan] = {}
    seen = [chosen.policy]
    policies = (*_neighbours(problem, chosen.policy), *_baselines(problem, chosen.policy), *given.items())
    for label, policy in policies:
        plan = _fitting(problem, policy)
        if plan is not None and plan.policy not in seen:
            seen.append(plan.policy)
            found[label] = plan
    return found


def _neighbours(problem: Problem, policy: Policy) -> Iterator[tuple[str, Policy]]:
    """One variable changed by a step, either way."""
    for factor in SIZES:
        yield f"gpu-batch-times-{factor:g}", _sized(problem, policy, round(policy.gpu_batch_size * factor))
    now = policy.num_gpu_batches
    for count in sorted({now // 2, now - 1, now + 1, now + 2, 2 * now}):
        if count >= 1:
            yield f"gpu-batches-{count}", replace(policy, num_gpu_batches=count)
    on_gpu = problem.target.compute_tier == "gpu"
    moves: list[tuple[Tier, Tier]] = [("cpu", "disk"), ("disk", "cpu")]
    if on_gpu:
        moves += [("gpu", "cpu"), ("cpu", "gpu")]
    for source, target in moves:
        if split := _moved(policy.weights, source, target):
            yield f"weights-{source}-to-{target}", replace(policy, weights=split)
        if split := _moved(policy.cache, source, target):
            yield f"cache-{source}-to-{target}", replace(policy, cache=split)
        if split := _moved(policy.activations, source, target):
            yield f"activations-{source}-to-{target}", replace(policy, activations=split)
    if on_gpu and problem.model.cpu_attention:
        for share in (0.0, 0.5, 1.0):
            yield f"cpu-attention-{share:g}", replace(policy, cpu_attention=share)


def _baselines(problem: Problem, policy: Policy) -> Iterator[tuple[str, Policy]]:
    """What one would try without a planner; the rest as in the chosen plan."""
    on_cpu = Split(gpu=0, cpu=1, disk=0)
    yield "all-weights-on-cpu", replace(policy, weights=on_cpu)
    yield "all-weights-on-disk", replace(policy, weights=Split(gpu=0, cpu=0, disk=1))
    if problem.target.compute_tier == "gpu":
        plain = replace(policy, cache=on_cpu, activations=on_cpu)
        shares = (
            replace(plain, weights=Split(gpu=percent / 100, cpu=1 - percent / 100, disk=0))
            for percent in range(100, 0, -5)
        )
        if most := next(filter(problem.fits, shares), None):
            yield "most-layers-on-gpu", most


def _sized(problem: Problem, policy: Policy, size: int) -> Policy:
    size = max(1, size)
    return replace(policy, gpu_batch_size=size, prefill_rows=problem.prefill_rows(size))


def _moved(split: Split, source: Tier, target: Tier) -> Split | None:
    shares = dict(split.items())
    step = min(STEP, shares[source])
    if step <= 0:
        return None
    shares[source] -= step
    shares[target] += step
    return Split(**shares)


def _fitting(problem: Problem, policy: Policy) -> Plan | None:
    """The policy with the largest gpu batches that fit; None where not even one sequence does."""
    while not problem.fits(policy):
        if policy.gpu_batch_size == 1:
            return None
        policy = _sized(problem, policy, int(policy.gpu_batch_size * FALL))
    return problem.plan(policy)
