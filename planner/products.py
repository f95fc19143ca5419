"""Products: a layer's matrices by shape, and how fast a host multiplies few rows with few outputs or many."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import cache

from hwprofiles.points import LARGE_COLUMNS, NARROW_OUTPUT, SMALL_COLUMNS
from planner.model import LayerSpec

Shape = tuple[int, int]
"""Outputs and inputs of a matrix."""

MANY_ROWS = 256
"""From here on all matrices are as fast."""
_MATRIX_DIMS = 2
_ALL_WIDE = 10240
"""Outputs from which on a product is as slow as with the many of a profile: of 8 rows in float32 on two cores those
with 4096 were 4% slower than with 2048, 5632 17, 6144 25, 8192 30, 11008 34, 16384 36; of 4 rows 13 to 36."""
_SHARE_OF_FIRST = 1 / 3
"""Of the arithmetic that a profile's `gemm` is of: an MLP's first matrix; the rest has few outputs."""
_FIRST_OUTPUTS = 4 * LARGE_COLUMNS
_ROUNDS = 40


def output_weight(outputs: float) -> float:
    """Where a matrix with so many outputs stands between few (0) and many (1), in their logarithm."""
    share = math.log(max(outputs, 1.0) / NARROW_OUTPUT) / math.log(_ALL_WIDE / NARROW_OUTPUT)
    return min(1.0, max(0.0, share))


def of_outputs(wide: float, columns: float, weight: float) -> float:
    """The rate with a matrix of this `output_weight`, over that with a layer's matrices of a profile together.

    `wide` is that of a matrix with many outputs, in a layer of LARGE_COLUMNS; in one of SMALL_COLUMNS all that were
    measured together have few.
    """
    narrow = _narrow(wide)
    size = math.log(max(columns, 1.0) / SMALL_COLUMNS) / math.log(LARGE_COLUMNS / SMALL_COLUMNS)
    return float(narrow ** min(1.0, max(0.0, size)) * (wide / narrow) ** weight)


@cache
def _narrow(wide: float) -> float:
    """The rate with few outputs, over that with all matrices together, as `wide` is.

    Seconds add up: (1 - share) / narrow + share / (narrow^(1 - weight) wide^weight) = 1, with the weight of an MLP's
    first matrix; times `narrow` that says what it is by itself, and each round brings it nearer.
    """
    narrow, weight = 1.0, output_weight(_FIRST_OUTPUTS)
    for _ in range(_ROUNDS):
        narrow = 1 - _SHARE_OF_FIRST + _SHARE_OF_FIRST * (narrow / wide) ** weight
    return narrow


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


def experts_hit(layer: LayerSpec, tokens: float) -> float:
    """Distinct experts that `tokens` tokens choose, k of E at random, expected: E(1 - (1 - k/E)^tokens)."""
    if not layer.num_experts:
        return 0.0
    missed = 1 - layer.experts_per_token / layer.num_experts
    return layer.num_experts * float(1 - missed**tokens)
