"""Player: lanes do their tasks in order, those at work at once slow one another; it knows nothing of plans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from planner.contention import fair_speeds

_NOTHING = -1


@dataclass(slots=True)
class Pieces:
    """What is to be played: a task an entry of each list."""

    lanes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """By itself."""
    kinds: list[int] = field(default_factory=list)
    """Tasks of one kind take equal shares of what lanes have in common."""
    deps: list[tuple[int, ...]] = field(default_factory=list)
    """Tasks to wait for, by their place here, beside those before it on its lane."""

    def add(self, lane: int, seconds: float, kind: int, deps: tuple[int, ...]) -> None:
        """One more task."""
        self.lanes.append(lane)
        self.seconds.append(seconds)
        self.kinds.append(kind)
        self.deps.append(deps)


def play(
    pieces: Pieces, num_lanes: int, shares: Sequence[tuple[float, ...]]
) -> tuple[list[float], list[float]]:
    """When each task starts and stops; `shares` are, by kind, of each thing that lanes have in common."""
    player = _Player(pieces, num_lanes, shares)
    player.play()
    return player.starts, player.stops


class _Player:
    """The event loop: whatever is done next moves the clock.

    For each lane it holds the task at work, when it will be done at the present speed, and the task that the next
    one waits for, so that an event looks at nothing that it does not change.
    """

    def __init__(self, pieces: Pieces, num_lanes: int, shares: Sequence[tuple[float, ...]]) -> None:
        count = len(pieces.lanes)
        self.pieces, self.shares = pieces, shares
        self.starts, self.stops, self.done = [0.0] * count, [0.0] * count, bytearray(count)
        self.queues: list[list[int]] = [[] for _ in range(num_lanes)]
        for task in range(count - 1, -1, -1):
            self.queues[pieces.lanes[task]].append(task)  # the next one last
        self.at_work = [_NOTHING] * num_lanes
        self.kinds = [_NOTHING] * num_lanes
        self.ends = [math.inf] * num_lanes
        self.speeds = [0.0] * num_lanes
        self.waits_for = [_NOTHING] * num_lanes
        self.known: dict[tuple[int, ...], tuple[float, ...]] = {}

    def play(self) -> None:
        """Until every lane has done all of its tasks."""
        ends, at_work, done, waits_for = self.ends, self.at_work, self.done, self.waits_for
        for lane in range(len(self.queues)):
            self._start(lane, 0.0)
        self._set_speeds(0.0)
        while (now := min(ends)) < math.inf:
            lane = ends.index(now)
            task = at_work[lane]
            self.stops[task], done[task] = now, 1
            at_work[lane] = self.kinds[lane] = _NOTHING
            ends[lane], self.speeds[lane] = math.inf, 0.0
            self._start(lane, now)
            if task in waits_for:
                for other, cause in enumerate(waits_for):
                    if cause == task:
                        self._start(other, now)
            self._set_speeds(now)
        assert all(done), "a task waits for one that never comes"

    def _start(self, lane: int, now: float) -> None:
        """Take the lane's next task, or note what it waits for."""
        queue, done = self.queues[lane], self.done
        self.waits_for[lane] = _NOTHING
        if not queue:
            return
        task = queue[-1]
        for dep in self.pieces.deps[task]:
            if not done[dep]:
                self.waits_for[lane] = dep
                return
        queue.pop()
        self.at_work[lane], self.kinds[lane] = task, self.pieces.kinds[task]
        self.starts[task], self.ends[lane], self.speeds[lane] = now, now + self.pieces.seconds[task], 1.0

    def _set_speeds(self, now: float) -> None:
        """Slow down or speed up what is at work."""
        key = tuple(self.kinds)
        speeds = self.known.get(key)
        if speeds is None:
            speeds = self.known[key] = self._fair(key)
        for lane, speed in enumerate(speeds):
            before = self.speeds[lane]
            if speed != before:
                self.ends[lane] = now + (self.ends[lane] - now) * before / speed
                self.speeds[lane] = speed

    def _fair(self, kinds: tuple[int, ...]) -> tuple[float, ...]:
        lanes = [lane for lane, kind in enumerate(kinds) if kind != _NOTHING]
        found = dict(zip(lanes, fair_speeds([self.shares[kinds[lane]] for lane in lanes]), strict=True))
        return tuple(found.get(lane, 0.0) for lane in range(len(kinds)))
