"""Search: walks the discrete choices, solves an LP for each, and realises the most promising."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import product

from planner.candidate import Candidate, bits_of, limits_of, most_sequences, tier_limits
from planner.lp import Solution, solve
from planner.plan import Plan
from planner.policy import Bits
from planner.problem import Problem
from planner.realise import batch_counts, realise, without_cpu_attention
from planner.relaxed import Relaxed
from planner.request import Request
from planner.work import Choice

_NEIGHBOURS = (0.625, 0.75, 0.875, 1.125, 1.25, 1.5)
"""Gpu batch sizes tried around the best powers of two."""
_EVEN_BLOCKS = 8
"""Gpu batches that divide the prompts into up to this many are tried."""
_COARSE_GROUPS = 3
_NUM_FINALISTS = 3
WORTH_IT = 0.005
"""A disk, attention on the CPU or a larger block must bring this much; less is within the model's error."""

Reporter = Callable[[str], None]
Keeper = Callable[[Plan], object]


def search(
    problem: Problem,
    request: Request,
    report: Reporter = lambda _: None,
    num_finalists: int = _NUM_FINALISTS,
    keep: Keeper = lambda _: None,
) -> Plan | None:
    """The plan with the highest throughput that fits, or None; `num_finalists` candidates are placed.

    `keep` is given every plan that was placed, the best one among them.
    """
    problem.check_attention(wanted=request.cpu_attention == "on")
    candidates: list[Candidate] = []
    for weight_bits, kv_bits in product(bits_of(request.weight_bits), bits_of(request.kv_bits)):
        report(f"{weight_bits}-bit weights, {kv_bits}-bit cache: walking gpu batch sizes")
        candidates += _Walk(problem, request, weight_bits, kv_bits).run()
    candidates.sort(key=lambda candidate: _promise(problem, candidate))
    plans: list[Plan] = []
    for rank, candidate in enumerate(candidates):
        if rank >= num_finalists and plans:
            break
        report(f"placing gpu batches of {candidate.choice.gpu_batch_size}")
        plans += realise(problem, request, candidate)
    best = _best(problem, plans)
    if best and best.policy.cpu_attention and request.cpu_attention != "on":
        rivals = [candidate for candidate in candidates if candidate.choice == Choice.of(best.policy)]
        found = (without_cpu_attention(problem, request, rival, best) for rival in rivals)
        without = [plan for plan in found if plan]
        best = _best(problem, [best, *without])
        plans += without
    for plan in plans:
        keep(plan)
    return replace(problem.with_interval(best), request=request) if best else None


def score(problem: Problem, plan: Plan) -> float:
    """Tokens per second over all prompts, or of a full block where their number is open."""
    return plan.throughput_tokens_per_s


def _promise(problem: Problem, candidate: Candidate) -> float:
    """Seconds per prompt, rows that no prompt fills counted."""
    prompts = problem.workload.num_prompts
    if not prompts:
        return candidate.seconds_per_sequence
    blocks = [candidate.choice.gpu_batch_size * count for count in batch_counts(problem, candidate)]
    rows = min(block * math.ceil(prompts / block) for block in blocks)
    return candidate.seconds_per_sequence * rows / prompts


def _best(problem: Problem, plans: Iterable[Plan]) -> Plan | None:
    """The fastest, or of those as good as it the simplest."""
    scored = [(score(problem, plan), plan) for plan in plans]
    if not scored:
        return None
    top = max(found for found, _ in scored)
    near = [(found, plan) for found, plan in scored if found >= top * (1 - WORTH_IT)]
    return min(near, key=lambda pair: (*_burden(pair[1]), -pair[0]))[1]


def _burden(plan: Plan) -> tuple[bool, bool, int]:
    """What a plan asks of its user: a disk, attention on the CPU, a large block."""
    return plan.ledger.peak_bytes("disk") > 0, plan.policy.cpu_attention > 0, plan.policy.block_size


@dataclass(slots=True)
class _Walk:
    """The walk over gpu batch sizes: every power of two, then the neighbours of the two best."""

    problem: Problem
    request: Request
    weight_bits: Bits
    kv_bits: Bits
    found: dict[tuple[int, bool], Candidate | None] = field(default_factory=dict)

    def run(self) -> list[Candidate]:
        """All that is feasible."""
        most = most_sequences(self.problem)
        size = 1
        while size <= most and self._visit(size):
            size *= 2
        self._visit(min(size, most))
        if self.problem.workload.num_prompts:
            for parts in range(1, _EVEN_BLOCKS + 1):
                self._visit(math.ceil(most / parts))
        for best in sorted(self._feasible(), key=lambda found: _promise(self.problem, found))[:2]:
            for ratio in _NEIGHBOURS:
                self._visit(min(most, max(1, round(best.choice.gpu_batch_size * ratio))))
        return self._feasible()

    def _feasible(self) -> list[Candidate]:
        return [candidate for candidate in self.found.values() if candidate]

    def _visit(self, size: int) -> bool:
        """Solve for a size, with activations at rest and moving; whether either is feasible."""
        for moves in (False, True):
            if (size, moves) not in self.found:
                self.found[size, moves] = self._solve(size, moves)
        return any(self.found[size, moves] for moves in (False, True))

    def _solve(self, size: int, moves: bool) -> Candidate | None:
        """The LP over splits and block size; prefill goes in smaller chunks where memory wants it."""
        rows = self.problem.prefill_rows(size)
        while rows:
            choice = Choice(
                gpu_batch_size=size,
                prefill_rows=rows,
                weight_bits=self.weight_bits,
                kv_bits=self.kv_bits,
                num_waves=self.problem.pipe.num_waves,
            )
            relaxed = Relaxed(
                problem=self.problem,
                choice=choice,
                moves_activations=moves,
                num_gpu_batches=None,
                max_decode_groups=_COARSE_GROUPS,
                of_longest=self.request.max_latency_s is not None,
            )
            limits = limits_of(self.problem, self.request, choice, tier_limits(self.problem))
            solution = solve(relaxed, limits)
            if isinstance(solution, Solution):
                return Candidate(
                    choice=choice,
                    moves_activations=moves,
                    seconds_per_sequence=solution.seconds_per_sequence,
                    num_gpu_batches=1 / solution.shares.inverse_batches,
                )
            rows //= 4
        return None
