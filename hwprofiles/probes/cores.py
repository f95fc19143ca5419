"""Cores: host time on each of them in turn.

A virtual machine's cores are threads of processors that other machines use too. On H200 hosts each of 16 cores was
1.7 times slower for a while, whatever this machine did, and its neighbour was not. A loop stays on one core for
seconds and finds one of the two; a run takes minutes and meets both.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hwprofiles.points import Rate
from hwprofiles.probes.timing import MIN_REPEATS, mean_rate_of

_MOST_CORES = 16


def cores() -> tuple[int | None, ...]:
    """Some of those this thread may use, evenly chosen; None for wherever it is, where threads cannot be bound."""
    if not hasattr(os, "sched_setaffinity"):
        return (None,)
    allowed = sorted(os.sched_getaffinity(0))
    return tuple(allowed[:: math.ceil(len(allowed) / _MOST_CORES)])


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Bind this thread, and let it go afterwards; where that is refused, as in a container, it stays as it is."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def mean_over_cores(seconds_of: Callable[[], float], slice_s: float) -> Rate:
    """The mean of what each core takes, in rounds through all of them for about `slice_s` seconds."""
    deadline, found = time.perf_counter() + slice_s, list[float]()
    while len(found) < MIN_REPEATS or time.perf_counter() < deadline:
        for core in cores():
            with on_core(core):
                found.append(seconds_of())
    return mean_rate_of(found)
