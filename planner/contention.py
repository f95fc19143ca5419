"""Contention: how much tasks that run at the same time slow one another, shared out max-min fairly."""

from __future__ import annotations

from collections.abc import Sequence

_FULL = 1e-12


def fair_speeds(shares: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """The speed of each task, 1 being its own, by what it takes of each shared resource at that speed.

    All speeds rise together; where a resource is full, the tasks on it stay as they are and the others go on.
    """
    speeds = [0.0] * len(shares)
    left = [1.0] * (len(shares[0]) if shares else 0)
    rising, level = set(range(len(shares))), 0.0
    while rising:
        demand = [sum(shares[task][at] for task in rising) for at in range(len(left))]
        step = min([1.0 - level, *(left[at] / demand[at] for at in range(len(left)) if demand[at] > 0)])
        level += step
        left = [room - step * wanted for room, wanted in zip(left, demand, strict=True)]
        full = {at for at, room in enumerate(left) if room <= _FULL}
        stopped = {task for task in rising if level >= 1.0 or any(shares[task][at] > 0 for at in full)}
        for task in stopped:
            speeds[task] = level
        rising -= stopped
    return tuple(speeds)
