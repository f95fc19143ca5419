"""A rate by size: what was measured at some sizes, and what is between them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Curve:
    """A rate by size (of a copy, of what a disk has in flight) or by GEMM rows; points in rising order."""

    points: tuple[tuple[float, float], ...]
    below: float = 1.0
    """Under the first point the rate goes with this power of x: 1 is a fixed time, 0 a fixed rate."""

    def at(self, x: float) -> float:
        """The rate at x: straight between points in log scales, flat above them."""
        first, last = self.points[0], self.points[-1]
        if x <= first[0]:
            return first[1] * float((max(x, 1.0) / first[0]) ** self.below)
        if x >= last[0]:
            return last[1]
        for (x0, y0), (x1, y1) in zip(self.points, self.points[1:], strict=False):
            if x <= x1:
                return y0 * float((y1 / y0) ** (math.log(x / x0) / math.log(x1 / x0)))
        raise AssertionError("points are in rising order")

    @property
    def best(self) -> float:
        """The highest rate."""
        return max(rate for _, rate in self.points)

    def scaled(self, factor: float, first: float = 0.0) -> Curve:
        """With rates so many times as high from x = `first` on; what is unused stays so."""
        if self == UNUSED:
            return self
        points = ((x, rate * factor if x >= first else rate) for x, rate in self.points)
        return replace(self, points=tuple(points))


UNUSED = Curve(((1.0, 1.0),))
"""Of a link or a disk that is not there."""
