"""Repeated timing: median and spread of work done in a slice of time."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hwprofiles.points import Rate

MIN_REPEATS = 3
_MAX_REPEATS = 50
_AIMED_REPEATS = 7
_SIGNIFICANT_DIGITS = 5

Rounds = Callable[[int], float]
"""Does that many rounds of the work and returns the seconds they took."""


def rounds_of(operation: Callable[[], object], finish: Callable[[], object] = lambda: None) -> Rounds:
    """Rounds of `operation`; `finish` waits for what it left running, inside the measured time."""

    def run(num_rounds: int) -> float:
        start = time.perf_counter()
        for _ in range(num_rounds):
            operation()
        finish()
        return time.perf_counter() - start

    return run


def seconds_per_round(run: Rounds, slice_s: float) -> list[float]:
    """At least three samples of the seconds of one round, in about `slice_s` seconds."""
    deadline = time.perf_counter() + slice_s
    run(1)
    first = max(run(1), 1e-9)
    num_rounds = max(1, int(slice_s / _AIMED_REPEATS / first))
    samples = [first] if num_rounds == 1 else []
    while len(samples) < MIN_REPEATS or (time.perf_counter() < deadline and len(samples) < _MAX_REPEATS):
        samples.append(max(run(num_rounds) / num_rounds, 1e-9))
    return samples


def median_seconds(operation: Callable[[], object], num_times: int, before: Callable[[], object]) -> float:
    """Of doing it so often, each time after `before`, which is not counted."""
    seconds = list[float]()
    for _ in range(num_times):
        before()
        began = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def measured_rate(run: Rounds, amount: float, slice_s: float) -> Rate:
    """`amount` per second, where one round does `amount`."""
    return rate_of([amount / seconds for seconds in seconds_per_round(run, slice_s)])


def rate_of(samples: Sequence[float]) -> Rate:
    """Median of the samples and half their interquartile range over the median."""
    median = statistics.median(samples)
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Rate(median=rounded(median), spread=round((high - low) / 2 / median, 4))


def mean_rate_of(samples: Sequence[float]) -> Rate:
    """Mean of the samples, where those fall into fast and slow ones, and half their interquartile range over it."""
    found, mean = rate_of(samples), statistics.mean(samples)
    return Rate(median=rounded(mean), spread=round(found.spread * found.median / mean, 4))


def sum_of(rates: Sequence[Rate]) -> Rate:
    """The total of rates that were measured at the same time; the spread is the largest one."""
    total = sum(rate.median for rate in rates)
    return Rate(median=rounded(total), spread=max(rate.spread for rate in rates))


def rounded(value: float) -> float:
    """The value with the digits a measurement deserves."""
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Work that one thread repeats while others do theirs; each operation does `amount`."""

    operation: Callable[[], object]
    amount: float
    prepare: Callable[[], object] = lambda: None
    """Run once in the worker's thread before it begins."""


def at_once(workers: Mapping[str, Worker], slice_s: float) -> dict[str, Rate]:
    """The rate of each worker while all of them run, over about `slice_s` seconds."""
    team = _Team(workers)
    threads = [threading.Thread(target=team.work, args=(name,), daemon=True) for name in workers]
    for thread in threads:
        thread.start()
    try:
        deadline = time.perf_counter() + slice_s
        while not team.stop.is_set() and (time.perf_counter() < deadline or not team.has_enough()):
            time.sleep(min(0.005, slice_s))
    finally:
        team.stop.set()
        for thread in threads:
            thread.join()
    if team.failures:
        raise team.failures[0]
    return {name: rate_of(team.window_rates(name)) for name in workers}


class _Team:
    """Shared state of the threads of `at_once`."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.workers = workers
        self.seconds: dict[str, list[float]] = {name: [] for name in workers}
        self.failures: list[Exception] = []
        self.stop = threading.Event()
        self._start = threading.Barrier(len(workers))

    def has_enough(self) -> bool:
        return all(len(seconds) >= MIN_REPEATS for seconds in self.seconds.values())

    def window_rates(self, name: str) -> list[float]:
        """Rates over consecutive windows; single operations of threads that share cores vary too much."""
        seconds = self.seconds[name]
        size = math.ceil(len(seconds) / _AIMED_REPEATS)
        windows = [seconds[start : start + size] for start in range(0, len(seconds), size)]
        return [self.workers[name].amount * len(window) / sum(window) for window in windows]

    def work(self, name: str) -> None:
        """One thread: warm up, wait for the others, repeat until told to stop."""
        worker = self.workers[name]
        try:
            worker.prepare()
            worker.operation()
            self._start.wait()
            while not self.stop.is_set():
                begin = time.perf_counter()
                worker.operation()
                self.seconds[name].append(max(time.perf_counter() - begin, 1e-9))
        except threading.BrokenBarrierError:
            return
        except Exception as error:  # handed to the thread that waits in at_once
            self.failures.append(error)
            self.stop.set()
            self._start.abort()
