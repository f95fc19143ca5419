"""Sample: which tokens and layers of a block are played, and how many each of them stands for."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.graphs import CAPTURE_PASS
from planner.policy import TIERS
from planner.schedule import tasks
from planner.shape import shape_of
from planner.sizes import Sizes

MAX_TASKS = 50_000
"""Blocks of more tasks are played for some of their tokens."""
NUM_TOKENS = 6
"""Decode passes that then stand for all of them."""
_GROWTH = 0.25
"""Where the cache grows by more than this share in decode, more than one pass stands for those between."""
_NUM_GROWING = 3
_SETTLED_VISITS = 12
"""Gpu batches after which a pass's beginning no longer shows."""
_MOST_WINDOW, _LEAST_WINDOW = 24, 2
_GRANTED_WINDOW = 8
"""Layers of a window, however few visits are asked for, where fewer are not like all."""
_EVEN = 0.002
"""Of a layer's bytes: how far the window's mean on a tier may be from that of the layers it stands for."""

Features = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Tokens and layers in rising order; the window is a stretch of `layers` that also stands for those left out."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    """Passes that each token stands for."""
    layers: tuple[int, ...]
    window: tuple[int, int] = (0, 0)
    """(first, stop), counted in `layers`."""
    times: float = 1.0
    """How often the window counts."""

    @property
    def is_whole(self) -> bool:
        """Whether every layer is played."""
        return self.window[0] == self.window[1]


def representative(sizes: Sizes, num_tokens: int | None = None) -> Sample:
    """All layers; prefill, the first and the last decode pass, which differ, `num_tokens` evenly from those between.

    Without `num_tokens` all of them, or NUM_TOKENS where all are more than MAX_TASKS tasks.
    """
    return representatives([sizes], num_tokens)[0]


def representatives(stages: Sequence[Sizes], num_tokens: int | None = None) -> list[Sample]:
    """The same of the stages of a pipeline, MAX_TASKS being of all together."""
    gen_len = stages[0].workload.gen_len
    if num_tokens is None:
        num_tokens = gen_len if _num_tokens(stages, MAX_TASKS) == gen_len else NUM_TOKENS
    first = _first_like_others(stages)
    return [_of_tokens(sizes, _spread(gen_len, num_tokens, first), first) for sizes in stages]


def first_tokens(stages: Sequence[Sizes], max_tasks: int) -> list[Sample]:
    """All layers; prefill and as many decode passes as come to about `max_tasks` tasks of all stages."""
    tokens, first = range(_num_tokens(stages, max_tasks)), _first_like_others(stages)
    return [_of_tokens(sizes, tokens, first) for sizes in stages]


def _num_tokens(stages: Sequence[Sizes], max_tasks: int) -> int:
    """Tokens that come to about so many tasks, at least one."""
    per_token = sum(1 for sizes in stages for _ in tasks(shape_of(sizes), 2)) / 2
    return max(1, min(stages[0].workload.gen_len, int(max_tasks / per_token)))


def thinned(sizes: Sizes, max_visits: int) -> Sample:
    """Few tokens and few layers that stand for all: about `max_visits` stops of the zig-zag walk, if that is enough."""
    sample = few_tokens(sizes)
    visits = len(sample.tokens) * len(sizes.placement.cache_rows)
    return _with_window(sample, sizes, max_visits // visits)


def few_tokens(sizes: Sizes) -> Sample:
    """All layers; prefill, the first and the last decode passes, and one for those between, more where they differ."""
    workload = sizes.workload
    grows = workload.gen_len > _GROWTH * workload.prompt_len
    first = _first_like_others([sizes])
    return _of_tokens(sizes, _spread(workload.gen_len, _NUM_GROWING if grows else 1, first), first)


def _first_like_others(stages: Sequence[Sizes]) -> int:
    """The first pass that stands for others: decode's second one, or beside a GPU the third or the fourth.

    The first one there was asked for while prefill went on, so that the host is early for it and late for the next
    one; and where in that layers are captured as graphs, the GPU is early for the one after.
    """
    if any(sizes.graphs.batches for sizes in stages):
        return CAPTURE_PASS + 2
    return CAPTURE_PASS + 1 if any(sizes.compute_tier == "gpu" for sizes in stages) else 2


def _spread(gen_len: int, num_between: int, first: int) -> list[int]:
    """All before `first`, the last decode pass, and `num_between` evenly from those between."""
    last = gen_len - 2
    if num_between >= last - first + 1:
        return list(range(gen_len))
    if num_between == 1:
        return [*range(first), (first + last) // 2, gen_len - 1]
    between = {first + round((last - first) * n / (num_between - 1)) for n in range(num_between)}
    return [*range(first), *sorted(between), gen_len - 1]


def _of_tokens(sizes: Sizes, tokens: Sequence[int], first: int) -> Sample:
    return Sample(
        tokens=tuple(tokens),
        weights=tuple(_weights(tokens, sizes.workload.gen_len, first)),
        layers=tuple(range(len(sizes.slabs))),
    )


def _weights(played: Sequence[int], gen_len: int, first: int) -> Iterator[float]:
    """Passes that each token stands for: itself, and its share of those between it and its neighbours.

    Those before `first` and the last decode pass are like no others and stand for none, unless there is nothing else.
    """
    inner = [token for token in played if first <= token < gen_len - 1] or list(played)
    weights = dict.fromkeys(played, 1.0)
    for i in range(gen_len):
        if i not in weights:
            above = min(bisect_left(inner, i), len(inner) - 1)
            below = above if inner[above] <= i or above == 0 else above - 1
            share = (i - inner[below]) / (inner[above] - inner[below]) if above > below else 0.0
            weights[inner[below]] += 1 - share
            weights[inner[above]] += share
    return iter(weights.values())


def _with_window(sample: Sample, sizes: Sizes, max_layers: int) -> Sample:
    """Fewer layers: some at either end, and between them the stretch that is most like all that are left out.

    Layers that decode joins to one task are all played.
    """
    num_layers = len(sizes.slabs)
    if sizes.joins_layers:
        return sample
    tail = -(-_SETTLED_VISITS // len(sizes.placement.cache_rows))
    lead = tail + _prefetched(sizes)
    middle = num_layers - lead - tail
    most = min(_MOST_WINDOW, max(_GRANTED_WINDOW, max_layers - lead - tail))
    if num_layers <= max_layers or middle <= most:
        return sample
    first, length = _typical(_features(sizes)[lead : lead + middle], most)
    window = range(lead + first, lead + first + length)
    return replace(
        sample,
        layers=(*range(lead), *window, *range(num_layers - tail, num_layers)),
        window=(lead, lead + length),
        times=middle / length,
    )


def _prefetched(sizes: Sizes) -> int:
    """Layers up to the last of those whose weights may be in their slots when a pass begins."""
    streamed = [j for j in range(len(sizes.slabs)) if sizes.streamed(j)]
    slots = sizes.policy.weight_slots
    return streamed[min(slots, len(streamed)) - 1] + 1 if streamed else 0


def _features(sizes: Sizes) -> Features:
    """[layers, 5]: what makes layers take different times: bytes by tier, arithmetic, cached tokens.

    As shares of the largest.
    """
    rows = [
        [*(float(slabs[tier].nbytes) for tier in TIERS), float(layer.linear_flops_per_token), float(kept)]
        for slabs, layer, kept in zip(sizes.slabs, sizes.model.layers, sizes.kept, strict=True)
    ]
    features, num_tiers = np.array(rows), len(TIERS)
    features[:, :num_tiers] /= features[:, :num_tiers].sum(axis=1).max()
    features[:, num_tiers:] /= features[:, num_tiers:].max(axis=0)
    return features


def _typical(features: Features, most: int) -> tuple[int, int]:
    """(first, length) of the shortest stretch whose mean is that of all, or else of the one nearest to it."""
    sums = np.concatenate((np.zeros((1, features.shape[1])), features.cumsum(axis=0)))
    best = (math.inf, 0, 0)
    for length in range(_LEAST_WINDOW, most + 1):
        means = (sums[length:] - sums[:-length]) / length
        off = np.abs(means - features.mean(axis=0)).sum(axis=1)
        first = int(off.argmin())
        best = min(best, (float(off[first]), first, length))
        if best[0] <= _EVEN:
            break
    return best[1:]
