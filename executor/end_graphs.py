"""End graphs: what comes before the layers of a decode pass and after them, replayed as CUDA graphs once proven."""

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
    """The graphs of both ends by gpu batch.

    A family's own code runs there, and what it computes from a number of the host's stays in a graph as it was. So a
    graph is first replayed beside the call of a later token: only if both leave the same does it take the call's place.
    """

    def __init__(self, graphs: LayerGraphs) -> None:
        self._graphs = graphs
        self._known: dict[EndKey, _Known] = {}
        self._are_used = True

    def forget(self) -> None:
        """No graph holds any longer."""
        self._known.clear()

    def run(self, key: EndKey, work: EndWork) -> None:
        """Replay, once that is proven; until then call, and capture or prove."""
        known = self._known.get(key)
        if known is None:
            work.call()
            if self._are_used and self._graphs.are_used:
                self._capture(key, work)
            return
        known.graph.replay()
        if known.is_proven:
            return
        replayed = _on_host(work.left())
        work.call()
        known.is_proven = _are_equal(replayed, _on_host(work.left()))
        if not known.is_proven:
            self._refuse("what they leave depends on more than the token and its position")

    def _capture(self, key: EndKey, work: EndWork) -> None:
        graph = self._graphs.try_capture(work.on_device)
        if isinstance(graph, str):
            self._refuse(graph)
        else:
            self._known[key] = _Known(graph)

    def _refuse(self, reason: str) -> None:
        """Do without from here on."""
        self._are_used = False
        self._known.clear()
        _log.info("what comes before the layers and after them is not replayed as CUDA graphs: %s", reason)


def _on_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Where they are compared: the first comparison on a GPU would load kernels for 40 ms."""
    return [tensor.to("cpu", copy=True) for tensor in tensors]


def _are_equal(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))
