"""Search: walks the discrete choices, solves an LP for each, and realises the most promising."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product, zip_longest

from planner.candidate import Candidate, bits_of
from planner.curve import Curve
from planner.plan import Plan
from planner.problem import Problem
from planner.realise import realise
from planner.request import Request
from planner.walk import Walk

_BEHIND = 1.1
"""Of the least time a sequence: what is further behind before numbers are whole is not followed up."""
_OFF_DISK = 1.5
"""So many times further for the best that uses no disk: the formulas promise too much of plans that read a little of a
small model from it."""
_NUM_FINALISTS = 6
_MOST_OF_A_MODE = 2
"""Candidates: the closed formula is wrong by as much for those of one mode."""
_NEAR = 0.03
"""Of a gpu batch size: as much less is about the same."""
WORTH_IT = 0.005
"""Attention on the CPU or a larger block must bring this much; less is within the model's error."""
DISK_WORTH_IT = 0.05
"""A disk must bring this much: others share it, and what it gives in a run is further from what was measured. On an
H200 host a plan with a little cache on disk took 1.65 times as long in decode as predicted."""

Reporter = Callable[[str], None]
Keeper = Callable[[Plan], object]


def search(
    problem: Problem,
    request: Request,
    report: Reporter = lambda _: None,
    keep: Keeper = lambda _: None,
) -> Plan | None:
    """The plan with the highest throughput that fits, or None.

    `keep` is given every plan that was placed, the best one among them, with times that are good enough to compare.
    """
    problem.check_attention(wanted=request.cpu_attention == "on")
    plans = finalists(problem, request, report)
    for plan in plans:
        keep(plan)
    best = _best(problem, plans)
    return replace(problem.with_interval(problem.finished(best)), request=request) if best else None


def glance(problem: Problem, request: Request) -> Plan | None:
    """The plan of the most promising candidate alone, with a time that is good enough to compare."""
    candidates = _candidates(problem, request, lambda _: None, behind=1.0, follow=Walk.glance)
    plans = (realise(problem, request, candidate) for candidate in candidates)
    return next((plan for plan in plans if plan), None)


def finalists(
    problem: Problem,
    request: Request,
    report: Reporter = lambda _: None,
    behind: float = _BEHIND,
    most: int = _NUM_FINALISTS,
) -> list[Plan]:
    """The most promising candidates as plans, those left out that promise less than what was found."""
    plans: list[Plan] = []
    for candidate in _candidates(problem, request, report, behind):
        if len(plans) == most:
            break
        best = max((worth(problem, plan) for plan in plans), default=0.0)
        if _most_worth(problem, request, candidate) < best:
            continue
        report(f"placing gpu batches of {candidate.choice.gpu_batch_size}")
        plan = realise(problem, request, candidate)
        plans += [plan] if plan else []
    return plans


def _most_worth(problem: Problem, request: Request, candidate: Candidate) -> float:
    """What the closed formula promises of a candidate; it is seldom beaten by what is simulated."""
    if request.max_latency_s is not None:  # the formula's time is that of the longest prompts
        return math.inf
    workload = problem.workload
    tokens = workload.gen_tokens / workload.num_prompts if workload.num_prompts else workload.gen_len
    return _less_disk(tokens / candidate.seconds_per_sequence, on_disk=candidate.way.disk != "none")


def _candidates(
    problem: Problem,
    request: Request,
    report: Reporter,
    behind: float,
    follow: Callable[[Walk, Curve], list[Candidate]] = Walk.whole,
) -> list[Candidate]:
    """The best of every mode of every pair of bits that is not far behind, the most promising first."""
    walks = []
    found: dict[Candidate, float] = {}
    for weight_bits, kv_bits in product(bits_of(request.weight_bits), bits_of(request.kv_bits)):
        report(f"{weight_bits}-bit weights, {kv_bits}-bit cache: walking gpu batch sizes")
        walk = Walk(problem=problem, request=request, weight_bits=weight_bits, kv_bits=kv_bits)
        walks.append(walk)
        if not walk.widest() and request.max_latency_s is not None:
            found |= {one: walk.promise(one) for one in walk.few()[:_NUM_FINALISTS]}
    enough_s = behind * min((walk.least_s for walk in walks), default=0.0)
    curves = [(walk, curve) for walk in walks for curve in walk.free(_OFF_DISK * enough_s)]
    least_off_disk_s = min((curve.least for _, curve in curves if curve.is_off_disk), default=math.inf)
    enough_off_disk_s = max(enough_s, min(_OFF_DISK * enough_s, behind * least_off_disk_s))
    for walk, curve in curves:
        if curve.least <= (enough_off_disk_s if curve.is_off_disk else enough_s):
            report(f"{walk.weight_bits}-bit weights, {walk.kv_bits}-bit cache: whole numbers of gpu batches")
            shapes: dict[tuple[int, float], Candidate] = {}
            for one in follow(walk, curve):
                shapes.setdefault((one.choice.gpu_batch_size, one.num_gpu_batches), one)
            found |= {one: walk.promise(one) for one in list(shapes.values())[:_MOST_OF_A_MODE]}
    return _in_turn(sorted(found, key=found.__getitem__))


def _in_turn(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The most promising of every pair of bits, then the second ones; those of about an earlier one's size come last.

    Where the closed formula is wrong, it is wrong by as much for the same bits, and for gpu batches of about a size.
    """
    of_bits: dict[tuple[int, int], list[Candidate]] = {}
    later: list[Candidate] = []
    for one in candidates:
        kept = of_bits.setdefault((one.choice.weight_bits, one.choice.kv_bits), [])
        alike = any(_are_neighbours(one, other) for other in kept)
        (later if alike else kept).append(one)
    turns = zip_longest(*of_bits.values())
    return [*(one for turn in turns for one in turn if one is not None), *later]


def _are_neighbours(one: Candidate, other: Candidate) -> bool:
    small, large = sorted((one.choice.gpu_batch_size, other.choice.gpu_batch_size))
    return (
        one.num_gpu_batches == other.num_gpu_batches
        and one.way == other.way
        and large - small <= _NEAR * large
    )


def score(problem: Problem, plan: Plan) -> float:
    """Tokens per second over all prompts, or of a full block where their number is open."""
    return plan.throughput_tokens_per_s


def worth(problem: Problem, plan: Plan) -> float:
    """The score, less what using a disk must bring, and what may be lost where decode waits for the host."""
    insured = plan.prediction.seconds / problem.insured_s(plan)
    return insured * _less_disk(score(problem, plan), on_disk=has_disk(plan))


def _less_disk(tokens_per_s: float, *, on_disk: bool) -> float:
    return (1 - DISK_WORTH_IT) * tokens_per_s if on_disk else tokens_per_s


def has_disk(plan: Plan) -> bool:
    """Whether anything of a plan lies on disk."""
    return plan.ledger.peak_bytes("disk") > 0


def _best(problem: Problem, plans: Iterable[Plan]) -> Plan | None:
    """The one worth most, or of those as good as it the simplest."""
    scored = [(worth(problem, plan), plan) for plan in plans]
    if not scored:
        return None
    top = max(found for found, _ in scored)
    near = [(found, plan) for found, plan in scored if found >= top * (1 - WORTH_IT)]
    return min(near, key=lambda pair: (*_burden(pair[1]), -pair[0]))[1]


def _burden(plan: Plan) -> tuple[bool, bool, int]:
    """What a plan asks of its user: a disk, attention on the CPU, a large block."""
    return has_disk(plan), plan.policy.cpu_attention > 0, plan.policy.block_size
