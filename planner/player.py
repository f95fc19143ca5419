"""Player: lanes do their tasks in order, those at work at once slow one another; it knows nothing of plans."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from planner.contention import NOBODY, Commons

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


def play(pieces: Pieces, num_lanes: int, commons: Commons) -> tuple[list[float], list[float]]:
    """When each task starts and stops."""
    player = _Player(pieces, num_lanes, commons)
    player.play()
    return player.starts, player.stops


class _Player:
    """The event loop: whatever is done next moves the clock.

    For each lane it holds the task at work, when it will be done at the present speed, and the task that the next
    one waits for, so that an event looks at nothing that it does not change.
    """

    def __init__(self, pieces: Pieces, num_lanes: int, commons: Commons) -> None:
        count = len(pieces.lanes)
        self.pieces, self.commons = pieces, commons
        self.starts, self.stops, self.done = [0.0] * count, [0.0] * count, bytearray(count)
        self.queues: list[list[int]] = [[] for _ in range(num_lanes)]
        for task in range(count - 1, -1, -1):
            self.queues[pieces.lanes[task]].append(task)  # the next one last
        self.at_work = [_NOTHING] * num_lanes
        self.ends = [math.inf] * num_lanes
        self.speeds = [0.0] * num_lanes
        self.waits_for = [_NOTHING] * num_lanes
        self.sharing = [NOBODY] * num_lanes
        """The kinds of tasks at work that others may slow."""
        self.has_changed = False
        """Since speeds were set."""
        self.known: dict[tuple[int, ...], list[tuple[int, float]]] = {}

    def play(self) -> None:
        """Until every lane has done all of its tasks."""
        ends, at_work, done, waits_for, sharing = (
            self.ends,
            self.at_work,
            self.done,
            self.waits_for,
            self.sharing,
        )
        for lane in range(len(self.queues)):
            self._start(lane, 0.0)
        self._set_speeds(0.0)
        while (now := min(ends)) < math.inf:
            lane = ends.index(now)
            task = at_work[lane]
            self.stops[task], done[task] = now, 1
            at_work[lane], ends[lane] = _NOTHING, math.inf
            if sharing[lane] != NOBODY:
                sharing[lane], self.has_changed = NOBODY, True
            self._start(lane, now)
            if task in waits_for:
                for other, cause in enumerate(waits_for):
                    if cause == task:
                        self._start(other, now)
            if self.has_changed:
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
        self.at_work[lane] = task
        self.starts[task], self.ends[lane], self.speeds[lane] = now, now + self.pieces.seconds[task], 1.0
        kind = self.pieces.kinds[task]
        if self.commons.is_shared[kind]:
            self.sharing[lane], self.has_changed = kind, True

    def _set_speeds(self, now: float) -> None:
        """Slow down or speed up what is at work."""
        self.has_changed = False
        key = tuple(self.sharing)
        speeds = self.known.get(key)
        if speeds is None:
            speeds = self.known[key] = self.commons.speeds(key)
        for lane, speed in speeds:
            before = self.speeds[lane]
            if speed != before:
                self.ends[lane] = now + (self.ends[lane] - now) * before / speed
                self.speeds[lane] = speed
