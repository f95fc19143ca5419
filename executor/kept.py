"""Kept: what graphs read and write of a gpu batch beside weights and cache, the same tensors from block to block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from executor.block import BatchState
from executor.end_graphs import EndGraphs
from executor.graphs import LayerGraphs, refresh
from executor.template import Arguments
from executor.visits import Replays
from hwprofiles.native_attention import find_attention
from planner.graphs import CAPTURE_PASS
from planner.placement import CacheRows, TierRows
from planner.schedule import Task
from planner.sizes import Sizes

BlockForm = tuple[tuple[CacheRows, TierRows, bool], ...]
"""Of each gpu batch the rows by tier, and whether prompts are padded: blocks of one form lie in the same places."""


def form_of(states: Sequence[BatchState]) -> BlockForm:
    """The form of a block."""
    return tuple((state.cache_rows, state.activation_rows, state.pads is None) for state in states)


@dataclass(frozen=True, slots=True)
class Kept:
    """Tensors whose places are in the graphs of one gpu batch."""

    length: torch.Tensor
    arguments: tuple[Arguments, ...]
    pads: torch.Tensor | None
    host_pads: torch.Tensor | None
    hidden: torch.Tensor | None
    """[rows, 1, hidden]: what layers read and write."""
    last_hidden: torch.Tensor | None
    last_ids: torch.Tensor | None

    @classmethod
    def of(cls, state: BatchState, arguments: tuple[Arguments, ...]) -> Kept:
        """Of the block that is captured."""
        assert state.length is not None, "what is captured has a length on the device"
        own = state.decode_hidden, state.last_hidden, state.last_ids
        return cls(state.length, arguments, state.pads, state.host_pads, *own)

    def take(self, state: BatchState) -> None:
        """Let a later block of the same form work in them; queued on the current stream."""
        own = self.pads, self.host_pads, self.last_ids
        for kept, new in zip(own, (state.pads, state.host_pads, state.last_ids), strict=True):
            if kept is not None and new is not None:
                kept.copy_(new)
        state.pads, state.host_pads, state.last_ids = own
        state.length, state.decode_hidden, state.last_hidden = self.length, self.hidden, self.last_hidden


class KeptBatches:
    """The gpu batches whose decode is replayed: their graphs, and what those work in, for blocks of one form."""

    def __init__(self, sizes: Sizes, device: torch.device, *, has_graphs: bool) -> None:
        self.graphs = LayerGraphs(device, wanted=has_graphs)
        self.visits = Replays(self.graphs)
        self.ends = EndGraphs(self.graphs)
        self._sizes, self._device = sizes, device
        self._form: BlockForm = ()
        self._kept: dict[int, Kept] = {}
        self._slots = self._find_replayable() if self.graphs.are_used else {}

    def _find_replayable(self) -> dict[int, int]:
        """Gpu batches, each with the number of slots its cache may lie in.

        The CPU's attention, if there is any, must be compiled: then it can be asked for without the layer's call.
        """
        rows = self._sizes.placement.cache_rows
        return {
            k: slots
            for k, slots in self._sizes.graphs.batches.items()
            if not rows[k].cpu_attend or find_attention() is not None
        }

    def start_block(self, states: Sequence[BatchState]) -> None:
        """Graphs are of blocks of one form, whose gpu batches end together."""
        self.graphs.start_block()
        form = form_of(states)
        if form != self._form or not self.visits.are_of_one_order:
            self.forget()
        self._form = form

    def forget(self) -> None:
        """No graph holds any longer."""
        self.visits.forget()
        self.ends.forget()
        self._kept.clear()

    def num_slots(self, k: int) -> int:
        """In how many slots a gpu batch's cache may lie."""
        return self._slots.get(k, 1)

    def replays(self, k: int) -> bool:
        """Whether layers are replayed for this gpu batch."""
        return self.graphs.are_used and k in self._slots

    def is_replayed(self, task: Task) -> bool:
        """Whether this layer is, for this token."""
        return task.i > 0 and self.replays(task.k) and task.j in self._sizes.graphs.layers

    def replays_ends(self, task: Task) -> bool:
        """Whether what comes before the layers and after them may be, too, for this token.

        Not before there is what graphs work in.
        """
        is_captured = task.i >= CAPTURE_PASS or task.k in self._kept
        return self._sizes.graphs.has_ends and task.i > 0 and is_captured and self.replays(task.k)

    def enter(self, k: int, state: BatchState) -> None:
        """Decode begins: a later block works where the first did."""
        if k in self._kept:
            self._kept[k].take(state)

    def arguments(self, k: int) -> tuple[Arguments, ...] | None:
        """What layers are called with, where graphs read it."""
        return self._kept[k].arguments if k in self._kept else None

    def set_length(self, task: Task, state: BatchState) -> None:
        """Put the cache's length where graphs read it."""
        if state.length is None:
            state.length = torch.empty(1, dtype=torch.long, device=self._device)
        state.length.fill_(state.past(task.i))

    def refresh(self, task: Task, state: BatchState, before: tuple[Arguments, ...]) -> None:
        """Put this token's arguments where graphs read them.

        `before` are those of the last token; in the first pass of decode those of an earlier block are taken.
        """
        known = self._kept.get(task.k)
        if task.i < CAPTURE_PASS:
            if known is None:
                return
            before = known.arguments
        if refresh(before, state.arguments[0]):
            state.arguments = [before]
            if known is None:
                self._kept[task.k] = Kept.of(state, before)
            return
        self.forget()
        if task.i >= CAPTURE_PASS:
            self.graphs.refuse("what layers are called with differs from token to token")
