"""Products: a layer's matrices by shape, and how fast a host multiplies few rows with few outputs or many."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import cache

from hwprofiles.points import LARGE_COLUMNS, NARROW_OUTPUT, SMALL_COLUMNS, WIDE_OUTPUT
from planner.model import LayerSpec

Shape = tuple[int, int]
"""Outputs and inputs of a matrix."""

MANY_ROWS = 256
"""From here on all matrices are as fast."""
_MATRIX_DIMS = 2
_HALF_WIDE = 1 / 3
"""Of the arithmetic that a profile's `gemm` is of: a matrix half-way between few and many outputs; the rest has few."""


def output_weight(outputs: float) -> float:
    """Where a matrix with so many outputs stands between few (0) and many (1), in their logarithm."""
    share = math.log(max(outputs, 1.0) / NARROW_OUTPUT) / math.log(WIDE_OUTPUT / NARROW_OUTPUT)
    return min(1.0, max(0.0, share))


def of_outputs(wide: float, columns: float, weight: float) -> float:
    """The rate with a matrix of this `output_weight`, over that with a layer's matrices of a profile together.

    `wide` is that of a matrix with many outputs, in a layer of LARGE_COLUMNS; in one of SMALL_COLUMNS all that were
    measured together have few.
    """
    narrow = _narrow(wide)
    size = math.log(max(columns, 1.0) / SMALL_COLUMNS) / math.log(LARGE_COLUMNS / SMALL_COLUMNS)
    return float(narrow ** min(1.0, max(0.0, size)) * (wide / narrow) ** weight)


def _narrow(wide: float) -> float:
    """The rate with few outputs, over that with all matrices together, as `wide` is.

    Seconds add up: (1 - share) / narrow + share / sqrt(narrow x wide) = 1, in which 1 / sqrt(narrow) is squared.
    """
    a, b = 1 - _HALF_WIDE, _HALF_WIDE / math.sqrt(wide)
    return (2 * a / (math.sqrt(b * b + 4 * a) - b)) ** 2


@cache
def matrices(layer: LayerSpec) -> tuple[tuple[Shape, float], ...]:
    """The shapes of a layer's matrices that every token goes through, each with its share of their elements."""
    return _shares(tensor.shape for tensor in layer.tensors if len(tensor.shape) == _MATRIX_DIMS)


@cache
def expert_matrices(layer: LayerSpec) -> tuple[tuple[Shape, float], ...]:
    """Likewise of the matrices of its experts, which a tensor holds one behind the other."""
    return _shares(tensor.shape[1:] for tensor in layer.tensors if len(tensor.shape) == _MATRIX_DIMS + 1)


def _shares(shapes: Iterable[tuple[int, ...]]) -> tuple[tuple[Shape, float], ...]:
    counts = Counter((outputs, inputs) for outputs, inputs in shapes)
    numels = {shape: count * math.prod(shape) for shape, count in counts.items()}
    whole = sum(numels.values())
    return tuple((shape, numel / whole) for shape, numel in sorted(numels.items()))
