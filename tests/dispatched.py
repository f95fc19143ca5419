"""What torch's dispatcher sees: operations that do something, and the bytes they move."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = ("view", "transpose", "slice", "expand", "squeeze", "permute", "select", "aten.t.", "split", "empty",
         "alias", "detach", "lift_fresh", "arange")  # fmt: skip
OWN = ("mm", "attention")
"""Matrix products and attention, which are priced apart."""


class Seen(TorchDispatchMode):
    """Counts operations, and the bytes that those which are no products read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.moved = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204  torch's signature
        result = func(*args, **(kwargs or {}))
        name = str(func)
        if not any(view in name for view in VIEWS):
            self.operations += 1
            if not any(own in name for own in OWN):
                self.moved += sum(tensor.nbytes for tensor in _tensors((args, result)))
        return result


def _tensors(found: object) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, tuple | list):
        for item in found:
            yield from _tensors(item)
