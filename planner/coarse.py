"""Coarse: a pipeline's layers in a few groups, each played as one layer; two such plays tell the time of all layers.

Playing L layers as g, each as long as L/g of them, keeps what every lane has to do and the order of it. What a stage
does once a pass for as long as a layer takes, such as waiting for the first layer's weights, becomes L/g times as
long. So the time of a pass is a straight line over L/g, and two points of it give its value at 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from planner.sample import Sample
from planner.sizes import Sizes
from planner.task_costs import Group

_GROUPS = (16, 8), (8, 4), (6, 4), (4, 2)
"""Groups of a stage in the two plays, from the finest."""
_LEAST_FROM_DISK = 4
"""Weights from disk are loaded some layers ahead: with fewer groups that would be all of them."""
_NOTHING = 1e-9
"""Of a layer: rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coarse:
    """What is played of all stages of a pipeline."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    """Passes that each token stands for."""
    stages: tuple[tuple[Group, ...], ...]
    """Of each stage the groups of its layers."""

    @property
    def size(self) -> float:
        """Layers of a group, on average."""
        groups = [group for stage in self.stages for group in stage]
        return sum(part for group in groups for _, part in group) / len(groups)


def whole(stages: Sequence[Sizes], sample: Sample) -> Coarse:
    """All layers one by one, for a sample's tokens."""
    return _of(stages, sample, max(len(sizes.slabs) for sizes in stages))


def plays(stages: Sequence[Sizes], sample: Sample, max_visits: int) -> tuple[Coarse, ...]:
    """All layers for a sample's tokens, or two plays of groups: about `max_visits` visits, if that is enough."""
    visits = len(sample.tokens) * len(stages[0].placement.cache_rows)
    if visits * sum(len(sizes.slabs) for sizes in stages) <= max_visits:
        return (whole(stages, sample),)
    reads = any(slabs["disk"].nbytes for sizes in stages for slabs in sizes.slabs)
    pairs = [pair for pair in _GROUPS if not reads or pair[-1] >= _LEAST_FROM_DISK]
    enough = (pair for pair in pairs if visits * len(stages) * sum(pair) <= max_visits)
    found = tuple(_of(stages, sample, count) for count in next(enough, pairs[-1]))
    return found if found[0].size < found[1].size else found[:1]


def of_single_layers(seconds: Sequence[float], sizes: Sequence[float]) -> float:
    """What follows for groups of one layer from the time with groups of these sizes."""
    if len(seconds) == 1:
        return seconds[0]
    (fine_s, coarse_s), (fine, coarse) = seconds, sizes
    return fine_s - (coarse_s - fine_s) * (fine - 1) / (coarse - fine)


def _of(stages: Sequence[Sizes], sample: Sample, num_groups: int) -> Coarse:
    return Coarse(
        tokens=sample.tokens,
        weights=sample.weights,
        stages=tuple(_groups(len(sizes.slabs), num_groups) for sizes in stages),
    )


def _groups(num_layers: int, num_groups: int) -> tuple[Group, ...]:
    """Groups of equal size; at their edges a layer may be part of two."""
    size = max(1.0, num_layers / num_groups)
    bounds = [n * size for n in range(min(num_groups, num_layers) + 1)]
    return tuple(tuple(_parts(first, stop, num_layers)) for first, stop in pairwise(bounds))


def _parts(first: float, stop: float, num_layers: int) -> Iterator[tuple[int, float]]:
    for j in range(int(first), min(num_layers, math.ceil(stop))):
        part = min(stop, j + 1) - max(first, j)
        if part > _NOTHING:
            yield j, part
