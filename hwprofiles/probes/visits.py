"""Visits: points that are measured at several times, and the rate of each that counts.

What else runs on a shared host slows a virtual machine for seconds at a time, and never makes it faster.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import replace

from hwprofiles.budget import Pace
from hwprofiles.points import Rate
from hwprofiles.probes.timing import rate_of, rounded

_FEWEST_TO_DROP = 4


class Visits:
    """Slices of time for visits, and what they found; visits to one point have others between them."""

    def __init__(self, pace: Pace, num_visits: int) -> None:
        self._pace, self._num_visits = pace, num_visits
        self._slices_s: dict[str, float] = {}
        self._num_taken = Counter[str]()
        self._rates: defaultdict[Hashable, list[Rate]] = defaultdict(list)

    def slice_s(self, label: str) -> float:
        """Seconds of one visit to what has this label: its share of a slice, which the first visit takes."""
        if label not in self._slices_s:
            self._slices_s[label] = self._pace.next(label) / self._num_visits
            self._pace.owe((self._num_visits - 1) * self._slices_s[label])
        elif self._num_taken[label] < self._num_visits:
            self._pace.owe(-self._slices_s[label])
        self._num_taken[label] += 1
        return self._slices_s[label]

    def add(self, point: Hashable, rate: Rate) -> None:
        """What one visit found of a point."""
        self._rates[point].append(rate)

    def best(self, point: Hashable) -> Rate:
        """The visit with the highest rate."""
        return max(self._rates[point], key=lambda rate: rate.median)

    def middle(self, point: Hashable) -> Rate:
        """The median of three or more; the spread is that visit's own, or that of the visits if it is more."""
        rates = sorted(self._rates[point], key=lambda rate: rate.median)
        median = rates[len(rates) // 2]
        return replace(median, spread=max(median.spread, rate_of([rate.median for rate in rates]).spread))

    def mean(self, point: Hashable) -> Rate:
        """Half-way between the visits; the spread is a visit's own, or how far they are from it if that is more.

        Of four or more neither the fastest nor the slowest counts: what disturbs one of them may last as long as it.
        """
        rates = sorted(self._rates[point], key=lambda rate: rate.median)
        rates = rates[1:-1] if len(rates) >= _FEWEST_TO_DROP else rates
        mean = statistics.mean(rate.median for rate in rates)
        apart = max(abs(rate.median - mean) for rate in rates) / mean
        return Rate(median=rounded(mean), spread=round(max(apart, *(rate.spread for rate in rates)), 4))
