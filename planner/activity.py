"""Activity: from the spans of tasks, how busy each lane was, how much of it at once, and what its gaps waited for.

The simulator's spans and the executor's go through the same code, so that predicted and measured mean the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from planner.plan import Phase

ISSUE = "the host to issue it"
"""What a gap waited for where all that the task depends on was done."""
PEER = "another rank"
"""Likewise, on the lanes between ranks."""


class Span(NamedTuple):
    """When a task ran on its lane."""

    id: int
    kind: str
    lane: str
    i: int
    j: int
    k: int
    start_s: float
    stop_s: float
    num_bytes: float
    deps: tuple[int, ...]


@dataclass(slots=True)
class Activity:
    """How some stretch of time was used, in seconds."""

    seconds: float = 0.0
    overlap_s: float = 0.0
    """Two or more lanes were at work."""
    busy_s: dict[str, float] = field(default_factory=dict)
    waits_s: dict[str, dict[str, float]] = field(default_factory=dict)
    """Lane -> what it waited for, as "kind on lane" -> seconds."""
    issue_s: float = 0.0
    """The host was asking a GPU for its work, task by task; measured, not predicted."""

    def add(self, other: Activity, times: float = 1.0) -> None:
        """As much again as `other`, so many times."""
        self.seconds += other.seconds * times
        self.overlap_s += other.overlap_s * times
        self.issue_s += other.issue_s * times
        for lane, seconds in other.busy_s.items():
            self.busy_s[lane] = self.busy_s.get(lane, 0.0) + seconds * times
        for lane, waits in other.waits_s.items():
            for cause, seconds in waits.items():
                self.wait(lane, cause, seconds * times)

    def wait(self, lane: str, cause: str, seconds: float) -> None:
        """A lane stood idle for some reason."""
        waits = self.waits_s.setdefault(lane, {})
        waits[cause] = waits.get(cause, 0.0) + seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseActivity:
    """How a phase's time was used, from when tasks began and ended; shares are of its wall time."""

    phase: Phase
    seconds: float
    binding: str
    """The resource at work longest; `cpu` where compute tasks mostly wait for its attention."""
    busy_share: Mapping[str, float]
    """By resource; `cpu` beside a `gpu` is the CPU's attention, within the compute tasks."""
    overlap_share: float
    """Two or more resources were at work at once, a compute task and its CPU attention counted as one."""
    waits_share: Mapping[str, float]
    """What the binding resource's gaps waited for: a task as "kind on resource", or the host."""
    issue_share: float = 0.0
    """The host was asking a GPU for its work, as measured; what it does between tasks is not in it."""


class Timeline:
    """Takes spans as they come and cuts time into stretches; keeps only spans that reach into the next one."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self._spans: list[Span] = []
        self._free: dict[str, float] = {}
        self._stops: dict[int, tuple[float, str]] = {}

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, span: Span) -> None:
        """One more span; those of one lane come in order and do not overlap."""
        self._spans.append(span)
        self._stops[span.id] = span.stop_s, f"{span.kind} on {span.lane}"

    def close(self, until_s: float) -> Activity:
        """The stretch from the last cut to `until_s`; all spans that begin before it must have been added."""
        activity = Activity(seconds=max(0.0, until_s - self.start_s))
        lanes: defaultdict[str, list[Span]] = defaultdict(list)
        for span in self._spans:
            lanes[span.lane].append(span)
        edges: list[tuple[float, int]] = []
        for lane, spans in lanes.items():
            edges += self._walk(lane, spans, until_s, activity)
        activity.overlap_s = _overlap_s(edges)
        self._spans = [span for span in self._spans if span.stop_s > until_s]
        self._stops = {task: stop for task, stop in self._stops.items() if stop[0] > self.start_s}
        self.start_s = max(self.start_s, until_s)
        return activity

    def _walk(
        self, lane: str, spans: Sequence[Span], until_s: float, activity: Activity
    ) -> list[tuple[float, int]]:
        """Note a lane's busy time and gaps; the edges of its spans."""
        free, busy, edges = max(self._free.get(lane, 0.0), self.start_s), 0.0, []
        for span in spans:
            if span.start_s > free:
                self._gap(span, free, min(span.start_s, until_s), activity)
            start, stop = max(span.start_s, free), min(span.stop_s, until_s)
            if start >= until_s:
                break
            if stop > start:
                busy, free = busy + stop - start, stop
                edges += [(start, 1), (stop, -1)]
        self._free[lane] = free
        activity.busy_s[lane] = activity.busy_s.get(lane, 0.0) + busy
        return edges

    def _gap(self, span: Span, start_s: float, stop_s: float, activity: Activity) -> None:
        """A lane was idle before a span: until its last dependency was done, then until it was issued."""
        if stop_s <= start_s:
            return
        rest = PEER if span.lane in ("net_in", "net_out") else ISSUE
        nothing = start_s, rest
        done_s, cause = max((self._stops.get(dep, nothing) for dep in span.deps), default=nothing)
        done_s = min(max(done_s, start_s), stop_s)
        if done_s > start_s:
            activity.wait(span.lane, cause, done_s - start_s)
        if stop_s > done_s:
            activity.wait(span.lane, rest, stop_s - done_s)


def _overlap_s(edges: list[tuple[float, int]]) -> float:
    """For how long two or more intervals were open at once."""
    total, num_open, last_s = 0.0, 0, 0.0
    for at_s, change in sorted(edges):
        if num_open >= 2:
            total += at_s - last_s
        num_open, last_s = num_open + change, at_s
    return total
