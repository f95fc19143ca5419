"""Visits: a layer's compute for one gpu batch, called part by part, or replayed as graphs that were captured so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from greenlet import getcurrent, greenlet

from executor.attention import Errand
from executor.graphs import LayerGraphs

Key = tuple[int, int, int, int]
"""Layer, gpu batch, weight slot, cache slot."""


def pause() -> None:
    """Leave a layer's call, and go on with it when its next part is run."""
    caller = getcurrent().parent
    assert caller is not None, "only what has a stack of its own can be left"
    caller.switch()


@dataclass(slots=True)
class Recorded:
    """A visit's graphs, a part each."""

    before: int | None
    """The gpu batch that was open when it was captured; its tensors are elsewhere than those of this one."""
    half: int
    """Of the exchange, in which its queries and results are."""
    errands: list[Errand] = field(default_factory=list)
    parts: list[torch.cuda.CUDAGraph] = field(default_factory=list)


class Visit(Protocol):
    """A visit in progress."""

    k: int
    half: int
    errands: list[Errand]
    """What the CPU is to attend to, when the first part was run."""
    is_replayed: bool

    def go_on(self) -> None:
        """Run the next part."""


class Called:
    """The layer's call, on a stack of its own, in which it is left between its parts."""

    is_replayed = False

    def __init__(self, k: int, half: int, call: Callable[[], None]) -> None:
        self.k, self.half = k, half
        self.errands: list[Errand] = []
        self.course = greenlet(call)

    def go_on(self) -> None:
        self.course.switch()


class Captured(Called):
    """The same, each part captured as a graph, which then runs."""

    def __init__(self, k: int, recorded: Recorded, graphs: LayerGraphs, call: Callable[[], None]) -> None:
        super().__init__(k, recorded.half, call)
        self.recorded, self.graphs = recorded, graphs

    def go_on(self) -> None:
        graph = self.graphs.capture(self.course.switch)
        if graph is None:
            raise CaptureError(
                "a part of a layer could not be captured as a CUDA graph, although it could before"
            )
        self.recorded.parts.append(graph)
        graph.replay()


class CaptureError(Exception):
    """A part that cannot be captured; nothing of it has run."""


class Replayed:
    """A visit whose graphs take the place of the call."""

    is_replayed = True

    def __init__(self, k: int, recorded: Recorded, total: int) -> None:
        """`total` are the tokens that are attended to now."""
        self.k, self.half = k, recorded.half
        self.errands = [errand.at(total) for errand in recorded.errands]
        self._parts = iter(recorded.parts)

    def go_on(self) -> None:
        next(self._parts).replay()


class Replays:
    """The graphs of blocks, and the order in which visits may take their place.

    All graphs share their memory, and queries and results a place of two halves: what a visit leaves there while it is
    open must not be what the next one writes. So a visit is replayed after the visit that it was captured after and no
    other. Where gpu batches end, the order is another one, and all is captured anew.
    """

    MOST_ORDERS = 8
    """Of a block. Beyond, gpu batches end so often that capturing takes more than it saves."""

    def __init__(self, graphs: LayerGraphs) -> None:
        self.graphs = graphs
        self._recorded: dict[Key, Recorded] = {}
        self._is_stale = False
        self._num_orders = 0

    @property
    def are_of_one_order(self) -> bool:
        """Whether the visits have always followed one another as they do at first."""
        return not (self._is_stale or self._num_orders)

    def forget(self) -> None:
        """Start anew."""
        self._recorded.clear()
        self._is_stale, self._num_orders = False, 0

    def find(self, key: Key, opened: Sequence[Visit]) -> Recorded | None:
        """The graphs that may take the place of a visit while these are open."""
        if self._is_stale and not opened:
            self._recorded.clear()
            self._is_stale = False
            self._num_orders += 1
        known = self._recorded.get(key)
        if known is None or self._is_stale:
            return None
        if (known.before, known.half) != place_of(opened):
            self._is_stale = True
            return None
        return known

    def may_capture(self, opened: Sequence[Visit]) -> bool:
        """Whether a visit's graphs would hold from now on; what is replayed now holds memory nobody knows of."""
        if any(visit.is_replayed for visit in opened):
            self._is_stale = True
        return self.graphs.are_used and not self._is_stale and self._num_orders < self.MOST_ORDERS

    def keep(self, key: Key, recorded: Recorded) -> None:
        """For later tokens."""
        self._recorded[key] = recorded


def place_of(opened: Sequence[Visit]) -> tuple[int | None, int]:
    """(the gpu batch that is open, the half of the exchange that is free) for the next visit."""
    return (opened[-1].k, 1 - opened[-1].half) if opened else (None, 0)
