"""Relief: what binds each phase of a plan, and how long the same plan would take if that were twice as fast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hwprofiles.units import format_seconds
from planner.cost import HOST
from planner.machine_change import parse_changes
from planner.plan import PHASES, Phase, Plan
from planner.predict import predict
from planner.pricing import NOT_RUN
from planner.problem import Problem

_REMEDY: Mapping[str, str] = {
    "h2d": "pcie=x2",
    "d2h": "pcie=x2",
    "disk_read": "disk-rate=x2",
    "disk_write": "disk-rate=x2",
    "gpu": "gpu-rate=x2",
    "cpu": "cpu-rate=x2",
    "cpu_mem": "cpu-rate=x2",
    HOST: "cpu-rate=x2",
}
_NAMED = 0.005
"""Busy shares that are worth a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What binds one phase."""

    phase: Phase
    seconds: float
    """Of one block."""
    binding: str
    busy_share: Mapping[str, float]
    """Of each resource, the busiest first."""
    remedy: str
    """The change of the machine that makes the binding resource twice as fast."""
    relieved_s: float
    """What the phase would take then, with the same plan."""
    relieved_binding: str


def bounds(problem: Problem, plan: Plan) -> Iterator[Bound]:
    """The bounds of the phases that are run."""
    for phase in PHASES:
        now = plan.prediction.of(phase)
        if now.binding == NOT_RUN:
            continue
        remedy = _remedy(now.binding, emulated=problem.target.emulated)
        (change,) = parse_changes(remedy)
        relieved = predict(plan.sizes(), change.apply(problem).rates).of(phase)
        busy = sorted(now.busy_s.items(), key=lambda item: -item[1])
        yield Bound(
            phase=phase,
            seconds=now.seconds,
            binding=now.binding,
            busy_share={resource: seconds / now.seconds for resource, seconds in busy},
            remedy=remedy,
            relieved_s=relieved.seconds,
            relieved_binding=relieved.binding,
        )


def _remedy(resource: str, *, emulated: bool) -> str:
    """An emulated GPU is as fast as the host's cores."""
    return _REMEDY["cpu" if emulated and resource == "gpu" else resource]


def bound_sentence(bound: Bound) -> str:
    """What binds, how busy it and the others are, and what relief would bring."""
    others = [
        f"{resource} {100 * share:.0f}%"
        for resource, share in bound.busy_share.items()
        if resource != bound.binding and share >= _NAMED
    ]
    beside = f", beside it {', '.join(others)}" if others else ""
    then = f"still bound by {bound.relieved_binding}"
    if bound.relieved_binding != bound.binding:
        then = f"bound by {bound.relieved_binding}"
    return (
        f"{bound.phase}: {bound.binding} binds, at work {100 * bound.busy_share[bound.binding]:.0f}% of "
        f"{format_seconds(bound.seconds)}{beside}. With {bound.remedy} the same plan would take "
        f"{format_seconds(bound.relieved_s)}, {then}."
    )
