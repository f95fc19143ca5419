"""Repetition, medians and workers that run at once."""

from __future__ import annotations

import threading
import time

import pytest

from hwprofiles.budget import Pace
from hwprofiles.probes.timing import (
    MIN_REPEATS,
    Worker,
    at_once,
    median_seconds,
    rate_of,
    rounds_of,
    seconds_per_round,
)


def test_rate_of_is_median_and_spread() -> None:
    """The spread is half the interquartile range over the median."""
    rate = rate_of([8.0, 9.0, 10.0, 11.0, 12.0])
    assert rate.median == 10.0
    assert rate.spread == pytest.approx(0.1)


def test_a_slow_operation_is_still_repeated() -> None:
    """An operation longer than its slice gets the fewest repeats that make a median."""
    assert len(seconds_per_round(rounds_of(lambda: time.sleep(0.002)), 0.0)) >= MIN_REPEATS


def test_workers_run_at_the_same_time() -> None:
    """Each has enough samples, and was prepared in its own thread."""
    prepared = set()

    def worker(amount: float) -> Worker:
        return Worker(
            operation=lambda: time.sleep(0.001),
            amount=amount,
            prepare=lambda: prepared.add(threading.get_ident()),
        )

    rates = at_once({"a": worker(1.0), "b": worker(1000.0)}, 0.02)
    assert rates["b"].median > rates["a"].median
    assert len(prepared) == 2


def test_a_worker_that_fails_ends_them_all() -> None:
    """Its exception arrives in the caller and no thread is left."""

    def fail() -> None:
        raise OSError("broken disk")

    before = threading.active_count()
    with pytest.raises(OSError, match="broken disk"):
        at_once({"a": Worker(operation=fail, amount=1), "b": Worker(operation=lambda: None, amount=1)}, 0.01)
    assert threading.active_count() == before


def test_pace_gives_later_points_what_earlier_ones_left() -> None:
    """A point that overran its slice shortens those after it, and progress counts the points."""
    calls = []
    pace = Pace(1.0, 4, lambda *call: calls.append(call))
    first = pace.next("a")
    time.sleep(0.5)
    second = pace.next("b")
    assert second < first
    assert calls == [("a", 0, 4), ("b", 1, 4)]


def test_what_comes_before_is_not_counted() -> None:
    """An operation is timed by itself, each time after the preparation."""
    done: list[str] = []
    assert median_seconds(lambda: done.append("it"), 2, lambda: done.append("before")) < 1
    assert done == ["before", "it", "before", "it"]
