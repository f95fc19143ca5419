"""Shortage: why no policy fits, and the nearest changes with which one would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hwprofiles.units import format_bytes, format_seconds
from planner.candidate import Candidate, bits_of, limits_of, tier_limits
from planner.handover import Failure
from planner.lp import shortage
from planner.policy import TIERS, Bits, Tier
from planner.problem import Problem
from planner.realise import place_within
from planner.relaxed import Relaxed
from planner.request import Request
from planner.shares import Way
from planner.work import Choice

_ROUNDING = (1.0, 1.01, 1.03, 1.1)
"""What whole tensors and rows may take beyond the LP's shares; tried in turn."""


def explain_shortage(problem: Problem, request: Request) -> str:
    """One line: what the smallest policy lacks on which tier, and what would fit."""
    smallest = _smallest(min(bits_of(request.weight_bits)), min(bits_of(request.kv_bits)))
    if request.max_latency_s is not None:
        unhurried = place_within(problem, replace(request, max_latency_s=None), smallest, 1)
        if unhurried:
            seconds = unhurried.prediction.prefill.seconds + unhurried.prediction.decode.seconds
            return (
                f"no policy takes {format_seconds(request.max_latency_s)} or less, one sequence by itself "
                f"takes {format_seconds(seconds)}; raise --max-latency or shorten --gen-len"
            )
    lacking = _lacking(problem, request, smallest)
    changes = [*_more_memory(problem, request, smallest), *_fewer_bits(problem, request, smallest)]
    remedy = "would fit with " + ", or ".join(changes) if changes else "no single change makes it fit"
    return (
        f"{problem.model.name} does not fit {problem.target.name} even one sequence at a time: "
        f"short by {lacking}; {remedy}"
    )


def _smallest(weight_bits: Bits, kv_bits: Bits) -> Candidate:
    choice = Choice(gpu_batch_size=1, prefill_rows=1, weight_bits=weight_bits, kv_bits=kv_bits)
    return Candidate(choice=choice, way=Way(), seconds_per_sequence=0.0, num_gpu_batches=1.0)


def _lacking(problem: Problem, request: Request, candidate: Candidate) -> str:
    """What the tiers there are lack; only what must be on a faster tier counts as its own."""
    tiers = [tier for tier in _tiers(problem) if problem.target.limit_bytes(tier)]
    short = _shortage(problem, request, candidate, tiers)
    if isinstance(short, Failure) or not short:
        return "what rounding to whole tensors takes"
    return " and ".join(f"{format_bytes(nbytes)} on {tier}" for tier, nbytes in short.items())


def _tiers(problem: Problem) -> tuple[Tier, ...]:
    return TIERS if problem.target.compute_tier == "gpu" else ("cpu", "disk")


def _more_memory(problem: Problem, request: Request, candidate: Candidate) -> Iterator[str]:
    """The limit of one tier with which the smallest policy really fits."""
    for tier in _tiers(problem):
        more = _shortage(problem, request, candidate, [tier])
        if isinstance(more, Failure):
            continue
        now = problem.target.limit_bytes(tier)
        for rounding in _ROUNDING:
            limit = now + round(more.get(tier, 0) * rounding)
            if place_within(problem.with_limit(tier, limit), request, candidate, 1):
                yield f"{format_bytes(limit)} on {tier} instead of {format_bytes(now)}"
                break


def _fewer_bits(problem: Problem, request: Request, candidate: Candidate) -> Iterator[str]:
    """4-bit choices with which the smallest policy fits."""
    options: tuple[tuple[str, Bits, Bits], ...] = (
        ("--weight-bits 4", 4, candidate.choice.kv_bits),
        ("--kv-bits 4", candidate.choice.weight_bits, 4),
        ("--weight-bits 4 --kv-bits 4", 4, 4),
    )
    for flags, weight_bits, kv_bits in options:
        changed = _smallest(weight_bits, kv_bits)
        if changed.choice != candidate.choice and place_within(problem, request, changed, 1):
            yield flags
            return


def _shortage(
    problem: Problem, request: Request, candidate: Candidate, tiers: Sequence[Tier]
) -> dict[Tier, int] | Failure:
    relaxed = Relaxed(
        problem=problem,
        choice=candidate.choice,
        num_gpu_batches=1,
        max_decode_groups=1,
        of_longest=request.max_latency_s is not None,
    )
    limits = limits_of(problem, request, candidate.choice, tier_limits(problem))
    return shortage(relaxed, limits, tiers)
