"""End graphs: what comes before the layers of a decode pass and after them, replayed as CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from executor.graphs import LayerGraphs

_log = logging.getLogger(__name__)

EndKey = tuple[Literal["prelude", "tail"], int]
"""Which end, of which gpu batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndWork:
    """One end's work in one pass; all three are called on the stream that computes."""

    call: Callable[[], None]
    """As in a pass without graphs."""
    on_device: Callable[[], None]
    """The same, reading and writing what stays where it is from pass to pass, and nothing of the host's."""
    left: Callable[[], Sequence[torch.Tensor]]
    """What both leave."""


@dataclass(slots=True)
class _Known:
    graph: torch.cuda.CUDAGraph
    is_proven: bool = False


class EndGraphs:
    """The graphs of both ends by gpu batch."""

    def __init__(self, graphs: LayerGraphs) -> None:
        self._graphs = graphs
        self._known: dict[EndKey, _Known] = {}
        self._are_used = True

    def forget(self) -> None:
        """No graph holds any longer."""
        self._known.clear()

    def repeat(self, key: EndKey, work: Callable[[], None]) -> None:
        """Do what is called alike for every token: capture it and replay, or call it where that cannot be."""
        known = self._known.get(key) or self._captured(key, work)
        if known is None:
            work()
        else:
            known.graph.replay()

    def run(self, key: EndKey, work: EndWork) -> None:
        """Do what may depend on more than the token and its position: replay, once that is proven not to.

        A family's own code runs there, and what it computes from a number of the host's stays in a graph as it was. So
        the first time it is called and captured, and the next time the graph is replayed beside the call. Only if both
        leave the same does it take the call's place.
        """
        known = self._known.get(key)
        if known is None:
            work.call()
            self._captured(key, work.on_device)
            return
        known.graph.replay()
        if known.is_proven:
            return
        replayed = _on_host(work.left())
        work.call()
        known.is_proven = _are_equal(replayed, _on_host(work.left()))
        if not known.is_proven:
            self._refuse("what it leaves depends on more than the token and its position")

    def _captured(self, key: EndKey, work: Callable[[], None]) -> _Known | None:
        if not (self._are_used and self._graphs.are_used):
            return None
        graph = self._graphs.try_capture(work)
        if isinstance(graph, str):
            self._refuse(graph)
            return None
        known = self._known[key] = _Known(graph)
        return known

    def _refuse(self, reason: str) -> None:
        """Do without from here on."""
        self._are_used = False
        self._known.clear()
        _log.info("an end of the model is not replayed as a CUDA graph: %s", reason)


def _on_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Where they are compared: the first comparison on a GPU would load kernels for 40 ms."""
    return [tensor.to("cpu", copy=True) for tensor in tensors]


def _are_equal(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))
