"""Realise: candidates become plans of whole gpu batches, tensors and rows that keep every limit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from planner.candidate import Candidate, limits_of, tier_limits
from planner.handover import Failure
from planner.lp import NO_ROWS, NO_SHARE, Limits, Program, Solution
from planner.plan import Plan
from planner.policy import Policy, Split, Tier
from planner.problem import Problem
from planner.relaxed import Relaxed
from planner.request import Request
from planner.shares import Shares, WholeRows
from planner.work import Choice

_FINE_GROUPS, _GROUPS_OF_A_STAGE = 4, 2
"""Of decode passes; stages are many, and what is played of them at the end is their passes one by one."""
_NUM_REPAIRS = 6
_FEW_ROWS = 64
"""Of a block in which a row more or less on the compute tier shows."""
_WHOLE = 1e-3
"""Of a row: so little is the solver's rounding."""


def realise(problem: Problem, request: Request, candidate: Candidate) -> Plan | None:
    """The candidate's plan; where what rounding adds does not fit, one with a slightly smaller block, or a smaller."""
    shape = candidate.choice.gpu_batch_size, round(candidate.num_gpu_batches)
    for size, count in _shapes(*shape, candidate.choice.num_waves):
        choice = replace(
            candidate.choice, gpu_batch_size=size, prefill_rows=min(size, candidate.choice.prefill_rows)
        )
        plan = place_within(problem, request, replace(candidate, choice=choice), count)
        if plan:
            return plan
    return None


def _shapes(size: int, count: int, waves: int) -> Iterator[tuple[int, int]]:
    """Gpu batch sizes and numbers to try in turn; as many gpu batches in every wave."""
    yield size, count
    for less in sorted({1, max(1, size // 16), max(1, size // 8)}):
        if less < size:
            yield size - less, count
    while count > waves:
        count -= max(1, count // waves // 8) * waves
        yield size, count


def place_within(problem: Problem, request: Request, candidate: Candidate, count: int) -> Plan | None:
    """The LP's splits for this block, placed and simulated in short; one that takes too long is given less time."""
    limits = limits_of(problem, request, candidate.choice, tier_limits(problem))
    for _ in range(_NUM_REPAIRS):
        plans = [problem.compared(draft) for draft in _drafts(problem, candidate, count, limits)]
        best = min(plans, key=problem.insured_s, default=None)
        if best is None or is_quick_enough(best, request):
            return best
        assert limits.max_latency_s
        assert request.max_latency_s
        less = request.max_latency_s / best.prediction.seconds
        limits = replace(limits, max_latency_s=limits.max_latency_s * less)
    return None


def _drafts(problem: Problem, candidate: Candidate, count: int, limits: Limits) -> Iterator[Plan]:
    """Plans with the LP's splits, their rows rounded one way and the other."""
    relaxed = Relaxed(
        problem=problem,
        choice=candidate.choice,
        num_gpu_batches=count,
        max_decode_groups=_num_groups(problem),
        of_longest=limits.max_latency_s is not None,
    )
    program = Program(relaxed, limits)
    solution = program.solve(limits.tier_bytes, candidate.way)
    if isinstance(solution, Failure):
        return
    for whole in _roundings(relaxed, solution):
        rounded = solution if whole == NO_ROWS else program.solve(limits.tier_bytes, candidate.way, whole)
        draft = _placed(problem, candidate, program, whole, rounded)
        if draft:
            yield draft
        if draft and problem.may_wait(draft):
            with_graphs = _placed(problem, candidate, program, whole, rounded, make_room=True)
            if with_graphs and with_graphs.policy.graphs:
                yield with_graphs


def _roundings(relaxed: Relaxed, solution: Solution) -> Iterator[WholeRows]:
    """As many attended rows in each gpu batch; where rows are few, those on the compute tier up or down."""
    size, count = relaxed.choice.gpu_batch_size, relaxed.num_gpu_batches
    assert count
    attended = None
    if solution.attends:
        attended = max(1, round(solution.shares.attended / relaxed.cache_units * size)) * count
    near = solution.shares.cache[relaxed.compute_tier] / relaxed.cache_units * size * count
    if size * count > _FEW_ROWS or relaxed.problem.pipe.num_stages > 1:
        yield WholeRows(attended=attended)
    else:
        rounded = {math.floor(near + _WHOLE), math.ceil(near - _WHOLE)}
        yield from (WholeRows(near=rows, attended=attended) for rows in sorted(rounded))
        if not attended:  # as many as there are need no slots
            yield from (WholeRows(near=rows) for rows in {size * count} - rounded)


def _placed(
    problem: Problem,
    candidate: Candidate,
    program: Program,
    whole: WholeRows,
    solution: Solution | Failure,
    *,
    make_room: bool = False,
) -> Plan | None:
    """The draft of the LP's splits; where what rounding adds, or graphs do, exceeds a limit, the LP is given less."""
    allowed = tier_limits(problem)
    for attempt in range(1, _NUM_REPAIRS + 1):
        if isinstance(solution, Failure):
            return None
        count = round(1 / solution.shares.inverse_batches)
        policy = policy_of(problem, candidate.choice, count, solution.shares)
        draft = problem.draft(policy, _num_groups(problem), make_room=make_room)
        short = draft.ledger.shortfalls(problem.target)
        if not short:
            return draft
        for tier, excess in short.items():
            allowed[tier] = max(0, allowed[tier] - 2 * attempt * excess)
        solution = program.solve(allowed, candidate.way, whole)
    return None


def _num_groups(problem: Problem) -> int:
    return _FINE_GROUPS if problem.pipe.num_stages == 1 else _GROUPS_OF_A_STAGE


def is_quick_enough(plan: Plan, request: Request) -> bool:
    """Whether a block keeps the latency asked for."""
    return request.max_latency_s is None or plan.prediction.seconds <= request.max_latency_s


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
        cpu_attention=min(1.0, attended) if attended > NO_SHARE else 0.0,
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
    kept = {tier: amount if amount > total * NO_SHARE else 0.0 for tier, amount in amounts.items()}
    return Split(**{tier: amount / sum(kept.values()) for tier, amount in kept.items()})
