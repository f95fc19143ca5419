"""Advise: the nearest changes that would make a policy fit, found by trying them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from hwprofiles.errors import UserError
from planner.plan import Plan
from planner.policy import Policy
from planner.problem import Problem

Change = tuple[str, Callable[[Policy], Policy]]
_BITS: tuple[Change, ...] = (
    ("--kv-bits 4", lambda policy: replace(policy, kv_bits=4)),
    ("--weight-bits 4", lambda policy: replace(policy, weight_bits=4)),
    ("--weight-bits 4 --kv-bits 4", lambda policy: replace(policy, weight_bits=4, kv_bits=4)),
)


def estimate(problem: Problem, policy: Policy) -> Plan:
    """The plan of a given policy; a UserError names every tier that is short and what would fit."""
    check_policy(problem, policy)
    plan = problem.plan(policy)
    if plan.ledger.shortfalls(plan.hardware):
        short = "; ".join(
            plan.ledger.explain(tier, plan.hardware) for tier in plan.ledger.shortfalls(plan.hardware)
        )
        raise UserError(f"{short}. {advice(problem, policy)}")
    return problem.with_interval(plan)


def check_policy(problem: Problem, policy: Policy) -> None:
    """A UserError where the machine or the model cannot do what the policy asks, however much memory there is."""
    problem.check_attention(wanted=policy.cpu_attention > 0)
    named = (("weights", policy.weights), ("cache", policy.cache), ("activations", policy.activations))
    if problem.target.compute_tier == "cpu":
        for name, split in named:
            if split.gpu > 0:
                raise UserError(
                    f"profile {problem.target.name} has no GPU, but {100 * split.gpu:g} percent of {name} "
                    "would be on the gpu tier; give them to cpu and disk"
                )


def advice(problem: Problem, policy: Policy) -> str:
    """The nearest changes with which a policy that is too large would fit."""
    changes = list(fitting_changes(problem, policy))
    if not changes:
        return "No smaller batch and no 4-bit choice fits with these percents; move shares to a larger tier"
    return "Nearest that fits: " + ", or ".join(changes)


def fitting_changes(problem: Problem, policy: Policy) -> Iterator[str]:
    """Each kind of change that makes the policy fit, as the flags to give."""
    yield from _smaller_blocks(problem, policy, "")
    fitted: list[str] = []
    for flags, change in _BITS:
        changed = change(policy)
        if changed == policy or any(bits in flags for bits in fitted):
            continue
        if problem.fits(changed):
            fitted.append(flags)
            yield flags
    if not fitted and (policy.weight_bits, policy.kv_bits) != (4, 4):
        flags, change = _BITS[-1]
        yield from _smaller_blocks(problem, change(policy), f"{flags} ")


def _smaller_blocks(problem: Problem, policy: Policy, prefix: str) -> Iterator[str]:
    batches = largest(policy.num_gpu_batches - 1, lambda count: problem.fits(with_batches(policy, count)))
    if batches:
        block = batches * policy.gpu_batch_size
        yield f"{prefix}--num-gpu-batches {batches} (block of {block})"
    batch = largest(policy.gpu_batch_size - 1, lambda size: problem.fits(with_batch(policy, size)))
    if batch:
        yield f"{prefix}--gpu-batch-size {batch} (block of {batch * policy.num_gpu_batches})"


def with_batches(policy: Policy, count: int) -> Policy:
    """The policy with another number of gpu batches, and no more waves than those."""
    return replace(policy, num_gpu_batches=count, num_waves=min(policy.num_waves, count))


def with_batch(policy: Policy, size: int) -> Policy:
    """The policy with another gpu batch size."""
    return replace(policy, gpu_batch_size=size, prefill_rows=min(policy.prefill_rows, size))


def largest(most: int, good: Callable[[int], bool]) -> int:
    """The largest of 1..most that is good, if what is below a good number is good; 0 if none is."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if good(middle) else (low, middle - 1)
    return low
