"""Figures: what a result says of its case, beside what the profile's rates allow and what was to be reached.

Reports are read as plain mappings, because a result outlives the version whose contract its report keeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers.base import PeerRun
from benchmarks.result import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What lies between a phase's bound and its measured time, in seconds; slower + less + idle = measured - bound."""

    phase: str
    measured_s: float
    bound_s: float
    """The busiest resource's work at the profile's rates."""
    bound_by: str
    binding: str
    """The resource that was at work longest in the run."""
    planned_s: float
    """That resource's work at the profile's rates."""
    busy_s: float
    """How long it was at work."""
    waits_s: Mapping[str, float]
    """Why it was idle -> for how long."""

    @property
    def idle_s(self) -> float:
        """How long the binding resource was not at work."""
        return self.measured_s - self.busy_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A tier's peak."""

    tier: str
    ledger_bytes: int
    measured_bytes: int | None

    @property
    def share(self) -> float | None:
        """Measured over ledger."""
        return self.measured_bytes / self.ledger_bytes if self.measured_bytes and self.ledger_bytes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of our median run."""

    throughput: float
    """Generated tokens a second."""
    bound: float
    """The same where each phase takes as long as its busiest resource's work at the profile's rates."""
    share_of_disk: float
    """What the profile's rates need for all that was read from disk, over the time of both phases."""
    gaps: Sequence[Gap]
    tiers: Sequence[Tier]

    @property
    def share_of_bound(self) -> float:
        """Measured over bound."""
        return self.throughput / self.bound


def figures_of(report: Mapping[str, object]) -> Figures | None:
    """A report's figures; None where it ran no phase."""
    plan = _mapping(report["plan"])
    prediction = _mapping(plan["prediction"])
    activity = {str(found["phase"]): found for found in _mappings(report["activity"])}
    phases = [phase for phase in _mappings(report["phases"]) if _number(phase["measured_s"])]
    if not phases:
        return None
    gaps, disk_s = [], 0.0
    for phase in phases:
        name = str(phase["phase"])
        predicted = _mapping(prediction[name])
        scale = _number(phase["predicted_s"]) / _number(predicted["seconds"])
        planned = {lane: scale * seconds for lane, seconds in _work(prediction, name).items()}
        gaps.append(_gap(name, _number(phase["measured_s"]), planned, activity[name]))
        disk_s += planned.get("disk_read", 0.0)
    measured_s, tokens = sum(gap.measured_s for gap in gaps), _number(report["generated_tokens"])
    return Figures(
        throughput=tokens / measured_s,
        bound=tokens / sum(gap.bound_s for gap in gaps),
        share_of_disk=disk_s / measured_s,
        gaps=gaps,
        tiers=[_tier(row) for row in _mappings(report["memory"])],
    )


def _work(prediction: Mapping[str, object], phase: str) -> dict[str, float]:
    """Each lane's work in a phase: that of its tasks, without what they lose to one another in the simulation."""
    alone: dict[str, float] = {}
    for task in _mappings(prediction["tasks"]):
        if task["phase"] == phase:
            resource = str(task["resource"])
            alone[resource] = alone.get(resource, 0.0) + _number(task["seconds"])
    busy = _mapping(_mapping(prediction[phase])["busy_s"])
    return {lane: min(_number(seconds), alone.get(lane, math.inf)) for lane, seconds in busy.items()}


def best_run(result: Result, peer: str) -> PeerRun | None:
    """The fastest run of a peer."""
    return next((runs.best() for runs in result.peers if runs.name == peer), None)


def _gap(phase: str, measured_s: float, planned: Mapping[str, float], activity: Mapping[str, object]) -> Gap:
    bound_by = max(planned, key=lambda lane: planned[lane])
    binding = str(activity["binding"])
    busy = _number(_mapping(activity["busy_share"])[binding])
    waits = {cause: _number(share) for cause, share in _mapping(activity["waits_share"]).items()}
    return Gap(
        phase=phase,
        measured_s=measured_s,
        bound_s=planned[bound_by],
        bound_by=bound_by,
        binding=binding,
        planned_s=planned.get(binding, 0.0),
        busy_s=busy * measured_s,
        waits_s={cause: share * measured_s for cause, share in waits.items()},
    )


def _tier(row: Mapping[str, object]) -> Tier:
    measured = row["measured_peak_bytes"]
    return Tier(
        tier=str(row["tier"]),
        ledger_bytes=int(_number(row["ledger_bytes"])),
        measured_bytes=None if measured is None else int(_number(measured)),
    )


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected a mapping in a report, found {value!r}")
    return value


def _mappings(value: object) -> list[Mapping[str, object]]:
    if not isinstance(value, Sequence):
        raise TypeError(f"expected a list in a report, found {value!r}")
    return [_mapping(item) for item in value]


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"expected a number in a report, found {value!r}")
    return float(value)
