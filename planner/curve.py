"""Curve: what the walk found while the number of gpu batches was free, and what that means between its sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from planner.candidate import Candidate
from planner.shares import Way

_BLOCK_MATTERS = 0.3
"""A block this share off the one wanted is guessed to take as much longer a sequence."""


class Curve:
    """Time and block size of the best candidates over the logarithm of their gpu batch size."""

    def __init__(self, free: Sequence[Candidate]) -> None:
        self._free = free
        self.sizes = [candidate.choice.gpu_batch_size for candidate in free]
        self._logs = np.log(self.sizes)
        self._seconds = [candidate.seconds_per_sequence for candidate in free]
        self._blocks = [candidate.block_size for candidate in free]
        self.least = min(self._seconds)

    @property
    def ways(self) -> set[Way]:
        """Of all sizes."""
        return {candidate.way for candidate in self._free}

    @property
    def is_off_disk(self) -> bool:
        """Whether none of them has anything on disk."""
        return all(way.disk == "none" for way in self.ways)

    @property
    def best_block(self) -> float:
        """The block size of the fastest."""
        return self._blocks[self._seconds.index(self.least)]

    def near(self, ratio: float) -> list[tuple[int, float]]:
        """Gpu batch sizes, and their numbers of gpu batches, that take at most `ratio` times as long as the best."""
        near = [one for one in self._free if one.seconds_per_sequence <= ratio * self.least]
        return [(one.choice.gpu_batch_size, one.num_gpu_batches) for one in near]

    def seconds(self, size: int) -> float:
        """Of a sequence."""
        return float(np.interp(math.log(size), self._logs, self._seconds))

    def guess(self, size: int, count: int) -> float:
        """Of a sequence in a block that is not as large as wanted; good for an order, not for a decision."""
        off = abs(math.log(size * count / self._wanted(size)))
        return self.seconds(size) * (1 + _BLOCK_MATTERS * off)

    def size(self, count: int) -> int:
        """The largest gpu batch size of which `count` are at most the block wanted."""
        low, high = 1, self.sizes[-1]
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle * count <= self._wanted(middle) else (low, middle - 1)
        return low

    def way(self, size: int) -> Way:
        """That of the nearest size that was solved."""
        return self._nearest(size).way

    def rows(self, size: int) -> int:
        """Of a prefill chunk, as many as the nearest size that was solved has."""
        return self._nearest(size).choice.prefill_rows

    def _nearest(self, size: int) -> Candidate:
        return self._free[int(np.abs(self._logs - math.log(size)).argmin())]

    def _wanted(self, size: int) -> float:
        return float(np.interp(math.log(size), self._logs, self._blocks))
