"""Kept: what graphs read and write of a gpu batch beside weights and cache, the same tensors from block to block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from executor.block import BatchState
from executor.template import Arguments
from planner.placement import CacheRows, TierRows

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

    @classmethod
    def of(cls, state: BatchState, arguments: tuple[Arguments, ...]) -> Kept:
        """Of the block that is captured."""
        assert state.length is not None, "what is captured has a length on the device"
        hidden = state.decode_hidden, state.last_hidden
        return cls(state.length, arguments, state.pads, state.host_pads, *hidden)

    def take(self, state: BatchState) -> None:
        """Let a later block of the same form work in them; queued on the current stream."""
        for kept, new in ((self.pads, state.pads), (self.host_pads, state.host_pads)):
            if kept is not None and new is not None:
                kept.copy_(new)
        state.pads, state.host_pads = self.pads, self.host_pads
        state.length, state.decode_hidden, state.last_hidden = self.length, self.hidden, self.last_hidden
