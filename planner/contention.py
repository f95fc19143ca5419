"""Contention: how much tasks that run at the same time slow one another.

What is full is shared out max-min fairly. Of tasks that yield, as the disk's do to what cores compute, half of that is
kept for them; beyond it they have what the others leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

_FULL = 1e-12
_KEPT = 0.5
"""Of its fair speed, what a task keeps that yields."""
NOBODY = -1
"""The kind of a lane whose task, if it has one, takes nothing of what is shared."""
Shares = tuple[float, ...]
"""What a task takes of each shared thing while it runs at its own speed."""
Used = Sequence[tuple[int, float]]
"""The same, of the things that it takes anything of: (thing, share)."""


class Commons:
    """What lanes have in common; tasks of one kind take equal shares of it."""

    def __init__(
        self,
        shares: Sequence[Shares],
        rooms: Sequence[tuple[float, ...]] = (),
        owners: Sequence[int] = (),
        yields: Sequence[bool] = (),
    ) -> None:
        """By kind the shares, the rank whose tasks they are, and whether they yield to others; without any, none does.

        `rooms` is of each thing what there is of it, by the number of ranks that are at work on it; without any, 1.
        """
        self._rooms = list(rooms) or [(1.0,)] * (len(shares[0]) if shares else 0)
        self._owners, self._yields = owners or [0] * len(shares), yields or [False] * len(shares)
        self._used: list[Used] = [[(at, x) for at, x in enumerate(each) if x > 0] for each in shares]
        self.is_shared = [bool(used) for used in self._used]
        """By kind, whether it takes anything."""

    def speeds(self, kinds: Sequence[int]) -> list[tuple[int, float]]:
        """(lane, its speed) for the kinds of tasks that lanes are at work on, 1 being a task's own speed."""
        lanes = [lane for lane, kind in enumerate(kinds) if kind != NOBODY]
        used = [self._used[kinds[lane]] for lane in lanes]
        wanted: dict[int, float] = {}
        ranks: dict[int, set[int]] = {}
        for lane, each in zip(lanes, used, strict=True):
            for at, share in each:
                wanted[at] = wanted.get(at, 0.0) + share
                ranks.setdefault(at, set()).add(self._owners[kinds[lane]])
        left = {at: self._rooms[at][min(len(who), len(self._rooms[at])) - 1] for at, who in ranks.items()}
        if all(wanted[at] <= room for at, room in left.items()):
            return [(lane, 1.0) for lane in lanes]
        yields = [self._yields[kinds[lane]] for lane in lanes]
        return list(zip(lanes, _yielding(used, yields, left), strict=True))


def fair_speeds(shares: Iterable[Shares]) -> tuple[float, ...]:
    """The speed of each task, 1 being its own, by what it takes of each shared thing, of which there is 1.

    All speeds rise together; where a thing is full, the tasks on it stay as they are and the others go on.
    """
    used = [[(at, share) for at, share in enumerate(each) if share > 0] for each in shares]
    return tuple(_fair(used, {at: 1.0 for each in used for at, _ in each}))


def _yielding(used: Sequence[Used], yields: Sequence[bool], left: Mapping[int, float]) -> list[float]:
    """The same with as much of each thing as is left of it, where some tasks yield to others."""
    speeds = _fair(used, left)
    first, last = ([n for n, does in enumerate(yields) if does == turn] for turn in (False, True))
    if not (first and last):
        return speeds
    kept = [_KEPT * speeds[n] for n in last]
    room = _beside(left, [used[n] for n in last], kept)
    for n, speed in zip(first, _fair([used[n] for n in first], room), strict=True):
        speeds[n] = speed
    room = _beside(left, [used[n] for n in first], [speeds[n] for n in first])
    for n, speed, least in zip(last, _fair([used[n] for n in last], room), kept, strict=True):
        speeds[n] = max(speed, least)  # the room for a tiny share may be lost in rounding
    return speeds


def _beside(left: Mapping[int, float], used: Iterable[Used], speeds: Iterable[float]) -> dict[int, float]:
    """What is left beside tasks at these speeds."""
    found = dict(left)
    for each, speed in zip(used, speeds, strict=True):
        for at, share in each:
            found[at] = max(0.0, found[at] - speed * share)
    return found


def _fair(used: Sequence[Used], room: Mapping[int, float]) -> list[float]:
    """Max-min fair speeds with as much of each thing as there is room."""
    left = dict(room)
    speeds = [1.0] * len(used)
    rising, level = list(range(len(used))), 0.0
    while rising:
        demand = dict.fromkeys(left, 0.0)
        for task in rising:
            for at, share in used[task]:
                demand[at] += share
        step = min([1.0 - level, *(left[at] / wanted for at, wanted in demand.items() if wanted > 0)])
        level += step
        if level >= 1.0:
            break
        for at, wanted in demand.items():
            left[at] -= step * wanted
        full = {at for at, wanted in demand.items() if wanted > 0 and left[at] <= _FULL}
        for task in [task for task in rising if any(at in full for at, _ in used[task])]:
            speeds[task] = level
            rising.remove(task)
    return speeds
