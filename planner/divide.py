"""Divide: a model's layers among stages, so that every stage takes about as long as the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from planner.pipeline import pipeline_prediction
from planner.plan import Plan

Evaluate = Callable[[int, int, int], Plan | None]
"""(stage, first layer, one past its last) -> what the stage would be; None where it does not fit."""
_ROUNDS = 8
_PATIENCE = 2
"""Rounds in a row that bring nothing before layers stay where they are."""


def divide(num_layers: int, num_stages: int, evaluate: Evaluate) -> list[Plan] | None:
    """The stages' plans with the shortest time together that was found; None where none fits.

    From an even division, layers go over to where they take less time, a few at once while the stages' own
    layers tell how many, then one by one.
    """
    counts = _even(num_layers, num_stages)
    seen: set[tuple[int, ...]] = set()
    best: tuple[float, list[Plan]] | None = None
    since_best = 0
    for _ in range(_ROUNDS):
        seen.add(tuple(counts))
        bounds = list(pairwise([0, *accumulate(counts)]))
        plans = [evaluate(stage, *bounds[stage]) for stage in range(num_stages)]
        found = [plan for plan in plans if plan]
        if len(found) == num_stages:
            seconds = _seconds(found)
            since_best += 1
            if best is None or seconds < best[0]:
                best, since_best = (seconds, found), 0
        times = [_own_seconds(plan) if plan else None for plan in plans]
        options = (_balanced(counts, times), _one_over(counts, times))
        fresh = [option for option in options if option and tuple(option) not in seen]
        if not fresh or since_best == _PATIENCE:
            break
        counts = fresh[0]
    return best[1] if best else None


def _even(num_layers: int, num_stages: int) -> list[int]:
    """The first and the last stage, which have ends too, are not given what is left over."""
    bounds = [num_layers * stage // num_stages for stage in range(num_stages + 1)]
    return [stop - first for first, stop in pairwise(bounds)]


def _seconds(plans: Sequence[Plan]) -> float:
    found = pipeline_prediction(plans)
    return found.prefill.seconds + found.decode.seconds


def _own_seconds(plan: Plan) -> float:
    return plan.prediction.prefill.seconds + plan.prediction.decode.seconds


def _balanced(counts: Sequence[int], times: Sequence[float | None]) -> list[int] | None:
    """As many layers each that all would take the same time, if every layer took its stage's mean."""
    known = [seconds for seconds in times if seconds]
    if len(known) < len(counts):
        return None
    speeds = [count / seconds for count, seconds in zip(counts, known, strict=True)]
    wanted = [sum(counts) * speed / sum(speeds) for speed in speeds]
    rounded = [max(1, int(share)) for share in wanted]
    while sum(rounded) > sum(counts):
        rounded[rounded.index(max(rounded))] -= 1
    by_rest = sorted(range(len(wanted)), key=lambda stage: rounded[stage] - wanted[stage])
    for stage in by_rest[: sum(counts) - sum(rounded)]:
        rounded[stage] += 1
    return rounded


def _one_over(counts: Sequence[int], times: Sequence[float | None]) -> list[int] | None:
    """A layer from the stage that takes longest, or does not fit, to the one that takes the least time."""
    slow = max(
        (stage for stage, count in enumerate(counts) if count > 1),
        key=lambda stage: times[stage] or float("inf"),
        default=None,
    )
    fits = [stage for stage, seconds in enumerate(times) if seconds and stage != slow]
    if slow is None or not fits:
        return None
    fast = min(fits, key=lambda stage: times[stage] or 0.0)
    moved = list(counts)
    moved[slow] -= 1
    moved[fast] += 1
    return moved
