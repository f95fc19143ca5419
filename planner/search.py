"""Search: walks the discrete choices, solves an LP for each, and realises the most promising."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from planner.lp import CpuAttention, Failure, Limits, Solution, solve
from planner.plan import Plan
from planner.policy import TIERS, Bits, Policy, Split, Tier
from planner.problem import Problem
from planner.relaxed import Relaxed, Shares
from planner.work import Choice

MAX_BLOCK = 4096
"""Sequences of a block, where the number of prompts sets no bound."""
_NEIGHBOURS = (0.625, 0.75, 0.875, 1.125, 1.25, 1.5)
"""Gpu batch sizes tried around the best powers of two."""
_COARSE_GROUPS, _FINE_GROUPS = 3, 8
_NUM_FINALISTS = 4
_NUM_REPAIRS = 4
_WORTH_IT = 0.005
"""A larger block or attention on the CPU must bring this much; less is within the model's error."""
_NO_SHARE = 1e-5

BitsChoice = Literal["16", "4", "auto"]
Reporter = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user leaves open."""

    weight_bits: BitsChoice = "16"
    kv_bits: BitsChoice = "16"
    cpu_attention: CpuAttention = "auto"
    max_latency_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A discrete choice and the best that the LP finds for it, with a number of gpu batches that is not whole."""

    choice: Choice
    moves_activations: bool
    seconds_per_sequence: float
    num_gpu_batches: float


def search(problem: Problem, request: Request, report: Reporter = lambda _: None) -> Plan | None:
    """The plan with the highest throughput that fits, or None."""
    candidates: list[_Candidate] = []
    for weight_bits, kv_bits in product(_bits(request.weight_bits), _bits(request.kv_bits)):
        report(f"{weight_bits}-bit weights, {kv_bits}-bit cache: walking gpu batch sizes")
        candidates += _walk(problem, request, weight_bits, kv_bits)
    candidates.sort(key=lambda candidate: candidate.seconds_per_sequence)
    plans: list[Plan] = []
    for rank, candidate in enumerate(candidates):
        if rank >= _NUM_FINALISTS and plans:
            break
        report(f"placing gpu batches of {candidate.choice.gpu_batch_size}")
        plans += _realise(problem, request, candidate)
    best = _best(problem, plans)
    if best is None or not best.policy.cpu_attention or request.cpu_attention == "on":
        return best
    without = [_without_cpu_attention(problem, request, candidate, best) for candidate in candidates]
    return _best(problem, [best, *(plan for plan in without if plan)])


def _bits(wanted: BitsChoice) -> tuple[Bits, ...]:
    return {"16": (16,), "4": (4,), "auto": (16, 4)}[wanted]  # type: ignore[return-value]


def score(problem: Problem, plan: Plan) -> float:
    """Generated tokens per second over all prompts, the last block counted as a whole one."""
    block_s = plan.prediction.prefill.seconds + plan.prediction.decode.seconds
    prompts = problem.workload.num_prompts or plan.policy.block_size
    return prompts * problem.workload.gen_len / (block_s * math.ceil(prompts / plan.policy.block_size))


def _best(problem: Problem, plans: list[Plan]) -> Plan | None:
    """The fastest, or of those as good as it the simplest: attention on the GPU, the smallest block."""
    if not plans:
        return None
    top = max(score(problem, plan) for plan in plans)
    near = [plan for plan in plans if score(problem, plan) >= top * (1 - _WORTH_IT)]
    return min(
        near, key=lambda plan: (plan.policy.cpu_attention > 0, plan.policy.block_size, -score(problem, plan))
    )


def _walk(problem: Problem, request: Request, weight_bits: Bits, kv_bits: Bits) -> list[_Candidate]:
    """Gpu batch sizes: every power of two, then the neighbours of the two best."""
    most = min(problem.workload.num_prompts or MAX_BLOCK, MAX_BLOCK)
    found: dict[tuple[int, bool], _Candidate] = {}

    def visit(size: int) -> bool:
        before = len(found)
        for moves in (False, True):
            if 1 <= size <= most and (size, moves) not in found:
                candidate = _relaxed_best(problem, request, size, moves, weight_bits, kv_bits)
                if candidate:
                    found[size, moves] = candidate
        return len(found) > before

    size = 1
    while size <= most and visit(size):
        size *= 2
    visit(min(size, most))
    for best in sorted(found.values(), key=lambda candidate: candidate.seconds_per_sequence)[:2]:
        for ratio in _NEIGHBOURS:
            visit(round(best.choice.gpu_batch_size * ratio))
    return list(found.values())


def _relaxed_best(
    problem: Problem, request: Request, size: int, moves: bool, weight_bits: Bits, kv_bits: Bits
) -> _Candidate | None:
    """The LP over splits and block size; prefill goes in smaller chunks where memory wants it."""
    rows = problem.prefill_rows(size)
    while rows:
        choice = Choice(gpu_batch_size=size, prefill_rows=rows, weight_bits=weight_bits, kv_bits=kv_bits)
        relaxed = Relaxed(
            problem=problem,
            choice=choice,
            moves_activations=moves,
            num_gpu_batches=None,
            max_decode_groups=_COARSE_GROUPS,
        )
        solution = solve(relaxed, _limits(problem, request, size, _tier_limits(problem)))
        if isinstance(solution, Solution):
            return _Candidate(
                choice=choice,
                moves_activations=moves,
                seconds_per_sequence=solution.seconds_per_sequence,
                num_gpu_batches=1 / solution.shares.inverse_batches,
            )
        rows //= 4
    return None


def _tier_limits(problem: Problem) -> dict[Tier, int]:
    return {tier: problem.target.limit_bytes(tier) for tier in TIERS}


def _limits(problem: Problem, request: Request, size: int, tier_bytes: dict[Tier, int]) -> Limits:
    return Limits(
        tier_bytes=tier_bytes,
        max_batches=float(_max_batches(problem, size)),
        cpu_attention=request.cpu_attention if problem.model.cpu_attention else "off",
        max_latency_s=request.max_latency_s,
    )


def _max_batches(problem: Problem, size: int) -> int:
    return max(1, math.ceil((problem.workload.num_prompts or MAX_BLOCK) / size))


def _realise(problem: Problem, request: Request, candidate: _Candidate) -> Iterator[Plan]:
    """Plans with a whole number of gpu batches near the LP's, and with fewer."""
    tried: set[int] = set()
    for count in _batch_counts(problem, candidate):
        while count not in tried:
            tried.add(count)
            plan = _place_within(problem, request, candidate, count)
            if plan:
                yield plan
                break
            count = max(1, count - max(1, count // 8))


def _batch_counts(problem: Problem, candidate: _Candidate) -> list[int]:
    ideal, size = candidate.num_gpu_batches, candidate.choice.gpu_batch_size
    counts = [math.ceil(ideal - 1e-6), math.floor(ideal + 1e-6), round(ideal / 2), round(ideal / 4), 1]
    prompts = problem.workload.num_prompts
    if prompts:  # blocks of equal size, so that the last one is full
        num_blocks = math.ceil(prompts / (size * ideal) - 1e-6)
        counts += [math.ceil(prompts / (size * blocks)) for blocks in (num_blocks, num_blocks + 1)]
    most = _max_batches(problem, size)
    return sorted({min(most, max(1, count)) for count in counts}, reverse=True)


def _place_within(problem: Problem, request: Request, candidate: _Candidate, count: int) -> Plan | None:
    """The LP's splits for this block, placed; where rounding exceeds a limit, the LP is given less."""
    relaxed = Relaxed(
        problem=problem,
        choice=candidate.choice,
        moves_activations=candidate.moves_activations,
        num_gpu_batches=count,
        max_decode_groups=_FINE_GROUPS,
    )
    allowed = _tier_limits(problem)
    for _ in range(_NUM_REPAIRS):
        limits = _limits(problem, request, candidate.choice.gpu_batch_size, dict(allowed))
        solution = solve(relaxed, limits)
        if isinstance(solution, Failure):
            return None
        plan = problem.plan(_policy(problem, candidate.choice, count, solution.shares))
        short = plan.ledger.shortfalls(problem.target)
        if not short:
            return plan if _is_quick_enough(plan, request) else None
        for tier, excess in short.items():
            allowed[tier] = max(0, allowed[tier] - excess)
    return None


def _without_cpu_attention(
    problem: Problem, request: Request, candidate: _Candidate, plan: Plan
) -> Plan | None:
    """The same choice with all rows off the GPU loaded."""
    if candidate.choice != Choice.of(plan.policy):
        return None
    off = replace(request, cpu_attention="off")
    return _place_within(problem, off, candidate, plan.policy.num_gpu_batches)


def _is_quick_enough(plan: Plan, request: Request) -> bool:
    limit = request.max_latency_s
    return limit is None or plan.prediction.prefill.seconds + plan.prediction.decode.seconds <= limit


def _policy(problem: Problem, choice: Choice, count: int, shares: Shares[float]) -> Policy:
    far = sum(gb for tier, gb in shares.cache.items() if tier != problem.target.compute_tier)
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
    )


def _split(gb: dict[Tier, float]) -> Split:
    total = sum(gb.values())
    kept = {tier: amount if amount > total * _NO_SHARE else 0.0 for tier, amount in gb.items()}
    return Split(**{tier: amount / sum(kept.values()) for tier, amount in kept.items()})
