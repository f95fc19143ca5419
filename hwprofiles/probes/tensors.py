"""What layers of a model ask of memory, in outline: tensors come and go as they do in prefill and decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


def allocations(device: torch.device, dtype: torch.dtype, width: int, tokens: Sequence[int]) -> Iterator[int]:
    """Run a layer's allocations for each count of tokens; the bytes that are held, after each allocation.

    A layer is a norm, Q, K and V, attention, a sum, and an MLP four times as wide; what is done with is freed.
    """
    held: dict[str, torch.Tensor] = {}

    def take(name: str, rows: int, columns: int) -> int:
        held[name] = torch.ones(rows, columns, device=device, dtype=dtype)  # written to, so that it is there
        return sum(tensor.nbytes for tensor in held.values())

    for rows in tokens:
        for name in ("hidden", "norm", "query", "key", "value"):
            yield take(name, rows, width)
        del held["norm"]
        yield take("attended", rows, width)
        del held["query"], held["key"], held["value"]
        yield take("sum", rows, width)
        del held["attended"], held["hidden"]
        yield take("wide", rows, 4 * width)
        yield take("activated", rows, 4 * width)
        del held["wide"]
        yield take("hidden", rows, width)
        del held["sum"], held["activated"]
