"""Threads that share out work on tensors, one core each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from threading import Event
from typing import TypeVar

import torch

T = TypeVar("T")


def num_workers(limit: int) -> int:
    """As many threads as this process has cores, up to `limit`."""
    return min(limit, len(os.sched_getaffinity(0)))


def share_out(work: Callable[[T, Event], None], items: Sequence[T], *, threads: int) -> None:
    """Do `work` on every item; after a failure, which is raised, it is told by its event to leave off.

    Each thread computes by itself: torch's own threads wait for one another at the end of every operation,
    which loses more than it gains when other threads are at work.
    """
    stopping, before = Event(), torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for _ in pool.map(work, items, repeat(stopping)):
                    pass
            except BaseException:
                stopping.set()
                raise
    finally:
        torch.set_num_threads(before)
