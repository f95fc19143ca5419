"""Realise: candidates become plans of whole gpu batches, tensors and rows that keep every limit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from planner.candidate import Candidate, limits_of, most_sequences, tier_limits
from planner.lp import Failure, Program
from planner.plan import Plan
from planner.policy import Policy, Split, Tier
from planner.problem import Problem
from planner.relaxed import Relaxed
from planner.request import Request
from planner.shares import Shares
from planner.work import Choice

_FINE_GROUPS = 4
_NUM_REPAIRS = 6
_NO_SHARE = 1e-5
"""Of some bytes: what the solver's rounding may leave on a tier."""


def realise(problem: Problem, request: Request, candidate: Candidate) -> Iterator[Plan]:
    """Plans with a whole number of gpu batches near the LP's, and with fewer."""
    tried: set[int] = set()
    for wanted in batch_counts(problem, candidate):
        count = wanted
        while count not in tried:
            tried.add(count)
            plan = place_within(problem, request, candidate, count)
            if plan:
                yield plan
            else:  # what rounding adds does not fit: a smaller block may
                count = max(1, count - max(1, count // 8))


def without_cpu_attention(
    problem: Problem, request: Request, candidate: Candidate, plan: Plan
) -> Plan | None:
    """The same discrete choice with all rows off the GPU loaded."""
    off = replace(request, cpu_attention="off")
    return place_within(problem, off, candidate, plan.policy.num_gpu_batches)


def batch_counts(problem: Problem, candidate: Candidate) -> list[int]:
    """Numbers of gpu batches to try, largest first."""
    ideal, size = candidate.num_gpu_batches, candidate.choice.gpu_batch_size
    counts = [math.ceil(ideal - 1e-6), math.floor(ideal + 1e-6), round(ideal / 2), round(ideal / 4), 1]
    prompts = problem.workload.num_prompts
    if prompts:  # blocks of equal size, so that the last one is full
        num_blocks = math.ceil(prompts / (size * ideal) - 1e-6)
        counts += [math.ceil(prompts / (size * blocks)) for blocks in (num_blocks, num_blocks + 1)]
    waves = candidate.choice.num_waves
    counts = [max(waves, count // waves * waves) for count in counts]  # waves of equal size
    most = max(1, math.ceil(most_sequences(problem) / size))
    return sorted({min(most, max(1, count)) for count in counts}, reverse=True)


def place_within(problem: Problem, request: Request, candidate: Candidate, count: int) -> Plan | None:
    """The LP's splits for this block, placed; where rounding exceeds a limit, the LP is given less."""
    relaxed = Relaxed(
        problem=problem,
        choice=candidate.choice,
        moves_activations=candidate.moves_activations,
        num_gpu_batches=count,
        max_decode_groups=_FINE_GROUPS,
        of_longest=request.max_latency_s is not None,
    )
    allowed = tier_limits(problem)
    program = Program(relaxed, limits_of(problem, request, candidate.choice, allowed))
    for attempt in range(1, _NUM_REPAIRS + 1):
        solution = program.solve(allowed)
        if isinstance(solution, Failure):
            return None
        policy = policy_of(problem, candidate.choice, count, solution.shares)
        short = problem.place(policy)[1].shortfalls(problem.target)
        if not short:
            plan = problem.plan(policy)
            return plan if is_quick_enough(plan, request) else None
        for tier, excess in short.items():
            allowed[tier] = max(0, allowed[tier] - 2 * attempt * excess)
    return None


def is_quick_enough(plan: Plan, request: Request) -> bool:
    """Whether a block keeps the latency asked for."""
    limit = request.max_latency_s
    return limit is None or plan.prediction.prefill.seconds + plan.prediction.decode.seconds <= limit


def policy_of(problem: Problem, choice: Choice, count: int, shares: Shares[float]) -> Policy:
    """The policy that an LP's solution stands for."""
    far = sum(amount for tier, amount in shares.cache.items() if tier != problem.target.compute_tier)
    attended = shares.attended / far if far > 0 else 0.0
    return Policy(
        gpu_batch_size=choice.gpu_batch_size,
        num_gpu_batches=count,
        weights=_split(shares.weights),
        cache=_split(shares.cache),
        activations=_split(shares.activations),
        weight_bits=choice.weight_bits,
        kv_bits=choice.kv_bits,
        cpu_attention=min(1.0, attended) if attended > _NO_SHARE else 0.0,
        prefill_rows=choice.prefill_rows,
        weight_slots=choice.weight_slots,
        cache_slots=choice.cache_slots,
        io_threads=problem.rates.io_threads,
        attention_threads=problem.rates.attention_threads,
        stages=problem.pipe.num_stages,
        num_waves=min(choice.num_waves, count),
        comm_device=problem.pipe.comm_device,
    )


def _split(amounts: dict[Tier, float]) -> Split:
    total = sum(amounts.values())
    kept = {tier: amount if amount > total * _NO_SHARE else 0.0 for tier, amount in amounts.items()}
    return Split(**{tier: amount / sum(kept.values()) for tier, amount in kept.items()})
