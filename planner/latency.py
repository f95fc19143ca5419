"""Latency: how soon a block is done, and the plan whose blocks are done soonest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from planner.candidate import Candidate, bits_of
from planner.plan import Plan
from planner.problem import Problem
from planner.realise import place_within
from planner.request import CpuAttention, Request
from planner.search import WORTH_IT, Keeper, Reporter, search
from planner.shares import Way
from planner.work import Choice


def latency_s(plan: Plan) -> float:
    """Seconds of one block, prefill and decode."""
    return plan.prediction.seconds


def quickest(
    problem: Problem, request: Request, report: Reporter = lambda _: None, keep: Keeper = lambda _: None
) -> Plan | None:
    """The plan whose block takes least time, and of those that take about as little the one with most throughput.

    A block may be as small as one sequence: nothing is quicker, but as many as the weights are loaded for may be
    as quick. The plan's request is the limit on latency that it was found with.
    """
    plans = list(single_sequences(problem, request))
    least = min(map(latency_s, plans), default=None)
    if least is None or (request.max_latency_s is not None and least > request.max_latency_s):
        return None
    limited = replace(request, max_latency_s=least * (1 + WORTH_IT))
    found = search(problem, limited, report, keep=keep)
    if found:
        return found
    best = problem.predicted(min(plans, key=latency_s))
    return replace(problem.with_interval(best), request=limited)


def single_sequences(problem: Problem, request: Request) -> Iterator[Plan]:
    """Blocks of one sequence: nothing is quicker.

    One row is attended either here or there, so where the request leaves it open both are tried.
    """
    unlimited = replace(request, max_latency_s=None)
    attended: tuple[CpuAttention, ...] = (
        ("auto", "off") if request.cpu_attention == "auto" else (request.cpu_attention,)
    )
    found = product(bits_of(request.weight_bits), bits_of(request.kv_bits), (False, True), attended)
    for weight_bits, kv_bits, moves, cpu_attention in found:
        choice = Choice(gpu_batch_size=1, prefill_rows=1, weight_bits=weight_bits, kv_bits=kv_bits)
        candidate = Candidate(
            choice=choice,
            way=Way(moves_activations=moves, attends=cpu_attention != "off"),
            seconds_per_sequence=0.0,
            num_gpu_batches=1.0,
        )
        plan = place_within(problem, replace(unlimited, cpu_attention=cpu_attention), candidate, 1)
        if plan:
            yield plan
