"""Threads: what handing a task from one to another costs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from hwprofiles.points import Rate
from hwprofiles.probes.timing import rate_of, rounds_of, seconds_per_round


def task_overhead(slice_s: float) -> Rate:
    """Seconds to hand a callable to another thread through a queue and to get its event back."""
    tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def serve() -> None:
        while (task := tasks.get()) is not None:
            task()

    def hand_over() -> None:
        done = threading.Event()
        tasks.put(done.set)
        done.wait()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    try:
        return rate_of(seconds_per_round(rounds_of(hand_over), slice_s))
    finally:
        tasks.put(None)
        server.join()
