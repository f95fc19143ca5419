"""A stand-in for CUDA graphs on the CPU: torch's operations are noted as they are asked for, and done again later.

Like a graph it reads and writes where it did at first, and knows nothing of what Python does in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Operation = tuple[Callable[..., object], Sequence[object], dict[str, object], object]


class Tape(TorchDispatchMode):
    """The operations of one part, in the place of a CUDAGraph."""

    num_played = 0

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.is_first = True

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: Sequence[object] = (), kwargs: object = None
    ) -> object:
        given = dict(kwargs) if isinstance(kwargs, dict) else {}
        result = func(*args, **given)
        self.operations.append((func, args, given, result))
        return result

    def replay(self) -> None:
        """Do all of them; the first time they have been done already, which a graph's have not."""
        if self.is_first:
            self.is_first = False
            return
        Tape.num_played += 1
        for func, args, kwargs, result in self.operations:
            self._again(func, args, kwargs, result)

    @staticmethod
    def _again(
        func: Callable[..., object], args: Sequence[object], kwargs: dict[str, object], result: object
    ) -> None:
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
            if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() not in given:
                old.copy_(new)


class TapeGraphs:
    """In the place of LayerGraphs."""

    def __init__(self, device: torch.device, *, wanted: bool) -> None:
        self.are_used = True
        self.num_captured = 0

    def start_block(self) -> None:
        """As there; a tape takes no memory of its own."""

    def capture(self, work: Callable[[], object]) -> Tape:
        """What `work` asks for; unlike a graph's it is done, too."""
        self.num_captured += 1
        with Tape() as tape:
            work()
        return tape

    def try_capture(self, work: Callable[[], object]) -> Tape:
        """As there; what it is replayed for is not done yet."""
        tape = self.capture(work)
        tape.is_first = False
        return tape

    def can_capture(self, work: Callable[[], object]) -> bool:
        """As there; nothing is done."""
        return True

    def refuse(self, reason: str) -> None:
        """As there."""
        self.are_used = False


def played_on_tapes(monkeypatch: pytest.MonkeyPatch) -> list[TapeGraphs]:
    """The graphs of each engine that is made from here on."""
    made: list[TapeGraphs] = []

    def make(device: torch.device, *, wanted: bool) -> TapeGraphs:
        made.append(TapeGraphs(device, wanted=wanted))
        return made[-1]

    monkeypatch.setattr("executor.kept.LayerGraphs", make)
    return made
