"""Graphs: a layer's decode for one gpu batch, captured once as a CUDA graph and replayed for every later token."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from executor.template import Arguments
from hwprofiles.probes.kernels import AMPERE, usable

_log = logging.getLogger(__name__)


class LayerGraphs:
    """Captures layers, into memory that all graphs have in common: they are replayed one after the other."""

    def __init__(self, device: torch.device, *, wanted: bool) -> None:
        self.are_used = wanted and usable(device, AMPERE)
        self._device, self._has_room = device, False
        if self.are_used:
            self._make_pool()

    def _make_pool(self) -> None:
        """A pool, and a graph in it that is never replayed: memory whose last graph is gone takes no other one."""
        self._pool = torch.cuda.graph_pool_handle()
        self._keeper, value = torch.cuda.CUDAGraph(), torch.zeros(1, device=self._device)
        with torch.cuda.stream(torch.cuda.Stream(self._device)):
            self._record(self._keeper, lambda: value.add_(1))

    def start_block(self) -> None:
        """Prefill is to come, for which torch's allocator takes what it is given."""
        self._has_room = False

    def capture(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph | None:
        """What `work` queues on the current stream, not yet run; None, and never again, where it cannot be captured."""
        found = self.try_capture(work)
        if isinstance(found, str):
            self.refuse(found)
            return None
        return found

    def try_capture(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph | str:
        """The same, or why it cannot be captured."""
        if not self._has_room:
            self._make_room()
        graph = torch.cuda.CUDAGraph()
        try:
            self._record(graph, work)
        except RuntimeError as error:
            self._make_pool()  # torch's own generator, and the pool, stay as in a capture: one has to end well
            return str(error).splitlines()[0]
        return graph

    def can_capture(self, work: Callable[[], object]) -> bool:
        """Whether `capture` would have a graph of this work, of which nothing is kept."""
        return self.capture(work) is not None

    def _make_room(self) -> None:
        """Give back what prefill needed and decode does not, for the driver keeps graphs beside what torch holds."""
        torch.cuda.empty_cache()
        self._has_room = True

    def _record(self, graph: torch.cuda.CUDAGraph, work: Callable[[], object]) -> None:
        """Nothing is collected meanwhile: CUDA refuses to destroy graphs while one is captured."""
        collects = gc.isenabled()
        gc.disable()
        try:
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        finally:
            if collects:
                gc.enable()

    def refuse(self, reason: str) -> None:
        """Do without from here on."""
        self.are_used = False
        _log.warning("decode is not replayed as CUDA graphs, which costs time: %s", reason)


def refresh(kept: Sequence[Arguments], new: Sequence[Arguments]) -> bool:
    """Copy the tensors of new arguments into those of kept ones, where graphs read them; False if they do not match."""
    copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for old, fresh in zip(_leaves(kept), _leaves(new), strict=False):
        if isinstance(old, torch.Tensor) and isinstance(fresh, torch.Tensor):
            if (old.shape, old.dtype, old.device) != (fresh.shape, fresh.dtype, fresh.device):
                return False
            copies[id(old)] = old, fresh
        elif old is not fresh and (type(old) is not type(fresh) or old != fresh):
            return False
    for old, fresh in copies.values():
        if old is not fresh:
            old.copy_(fresh)
    return True


def tensors_of(arguments: Sequence[Arguments]) -> list[torch.Tensor]:
    """The tensors in layers' arguments, those of several layers more than once."""
    return [leaf for leaf in _leaves(arguments) if isinstance(leaf, torch.Tensor)]


def _leaves(arguments: object) -> Iterator[object]:
    """All that is in nested tuples, lists and mappings, keys and lengths included."""
    if isinstance(arguments, Mapping):
        yield tuple(arguments)
        for value in arguments.values():
            yield from _leaves(value)
    elif isinstance(arguments, (tuple, list)):
        yield len(arguments)
        for value in arguments:
            yield from _leaves(value)
    else:
        yield arguments
