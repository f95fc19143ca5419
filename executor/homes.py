"""Where a slab's bytes come to rest: put there once, while the weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from executor.disk import DiskFile
from planner.layout import PAGE_BYTES, align


class Home(Protocol):
    """Bytes on one tier."""

    def in_place(self, offset: int, nbytes: int) -> torch.Tensor | None:
        """The bytes themselves where the host can write them; None elsewhere."""

    def put(self, offset: int, data: torch.Tensor, bounce: torch.Tensor) -> None:
        """Store uint8 host `data` at `offset`; `bounce` is page-aligned host memory to pass through."""


class MemoryHome:
    """A uint8 view of host memory or of a device's."""

    def __init__(self, memory: torch.Tensor) -> None:
        self._memory = memory

    def in_place(self, offset: int, nbytes: int) -> torch.Tensor | None:
        """See Home."""
        return self._memory[offset : offset + nbytes] if self._memory.device.type == "cpu" else None

    def put(self, offset: int, data: torch.Tensor, bounce: torch.Tensor) -> None:
        """See Home."""
        self._memory[offset : offset + data.numel()].copy_(data)


class DiskHome:
    """A range of a file, from a page boundary on; pages that a piece shares with others are read first.

    Not for two threads at once.
    """

    def __init__(self, file: DiskFile, start: int) -> None:
        self._file, self._start = file, start

    def in_place(self, offset: int, nbytes: int) -> torch.Tensor | None:
        """See Home."""
        return None

    def put(self, offset: int, data: torch.Tensor, bounce: torch.Tensor) -> None:
        """See Home."""
        room = bounce.numel() // PAGE_BYTES * PAGE_BYTES - PAGE_BYTES
        for begin, piece in _pieces(data, room):
            first = self._start + offset + begin
            last = first + piece.numel()
            page, pages_end = first // PAGE_BYTES * PAGE_BYTES, align(last)
            pages = bounce[: pages_end - page]
            if first > page:
                self._file.read(page, pages[:PAGE_BYTES])
            if last < pages_end and (pages_end - page > PAGE_BYTES or first == page):
                self._file.read(pages_end - PAGE_BYTES, pages[-PAGE_BYTES:])
            pages[first - page : last - page].copy_(piece)
            self._file.write(page, pages)


def _pieces(data: torch.Tensor, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, data.numel(), size):
        yield start, data[start : start + size]
