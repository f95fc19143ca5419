"""Frontier: plans of which none is both quicker with a block and faster over all prompts than another."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hwprofiles.units import format_seconds
from planner.latency import latency_s, single_sequences
from planner.plan import Plan
from planner.problem import Problem
from planner.request import Request
from planner.search import Reporter, score, search

_NUM_LIMITS = 14
"""Latencies that are searched under, from that of the fastest plan down to that of a single sequence."""
_LEAST_RATIO = 1.05
"""Between one latency limit and the next."""
_ALIKE = 0.002
"""Of two plans that nobody could tell apart the lesser is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A plan by what a user weighs."""

    latency_s: float
    """Of one block, prefill and decode."""
    tokens_per_s: float
    """Generated tokens over both phases of all blocks."""
    is_efficient: bool
    """No other plan has less latency and as much throughput, or as little and more."""
    is_chosen: bool
    plan: Plan


def frontier(
    problem: Problem,
    request: Request,
    chosen: Plan,
    realised: Iterable[Plan],
    report: Reporter = lambda _: None,
) -> tuple[Point, ...]:
    """Points by rising latency: the frontier, and the other plans met on the way to it.

    `realised` are the plans that the search for `chosen` met. A latency limit of the request is not kept to.
    """
    plans = [chosen, *realised]
    if request.max_latency_s is not None:
        report("frontier: without a limit on latency")
        search(problem, replace(request, max_latency_s=None), keep=plans.append)
    plans += single_sequences(problem, request)
    shortest = min(map(latency_s, plans))
    limit = latency_s(max(plans, key=lambda plan: score(problem, plan)))
    ratio = max(_LEAST_RATIO, (limit / shortest) ** (1 / _NUM_LIMITS))
    while limit / ratio > shortest:
        limit /= ratio
        report(f"frontier: blocks of at most {format_seconds(limit)}")
        found = search(problem, replace(request, max_latency_s=limit), keep=plans.append)
        limit = min(limit, latency_s(found)) if found else limit
    return points_of(problem, chosen, plans)


def points_of(problem: Problem, chosen: Plan, plans: Iterable[Plan]) -> tuple[Point, ...]:
    """The plans by rising latency, with whether another one beats them; each policy, and what is as good, once."""
    found = {plan.policy: plan for plan in plans}
    weighed = sorted(
        ((latency_s(plan), score(problem, plan), plan) for plan in found.values()),
        key=lambda point: (point[0], -point[1]),
    )
    points: list[Point] = []
    best = 0.0
    for latency, rate, plan in weighed:
        point = Point(
            latency_s=latency,
            tokens_per_s=rate,
            is_efficient=rate > best,
            is_chosen=plan.policy == chosen.policy,
            plan=plan,
        )
        if point.is_efficient or point.is_chosen or not any(_are_alike(point, other) for other in points):
            points.append(point)
        best = max(best, rate)
    return tuple(points)


def _are_alike(point: Point, other: Point) -> bool:
    return math.isclose(point.latency_s, other.latency_s, rel_tol=_ALIKE) and math.isclose(
        point.tokens_per_s, other.tokens_per_s, rel_tol=_ALIKE
    )
