"""Memory the probes work on: filled with random data, touched, and for GPUs registered at its exact size."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import torch
from torch import Tensor

from hwprofiles.errors import UserError
from hwprofiles.units import MIB, format_bytes

_RANDOM_ELEMENTS = MIB
_SHARE_OF_AVAILABLE = 8


def fill_random(tensor: Tensor) -> Tensor:
    """Fill a contiguous tensor with uniform values in [-1, 1), random bytes if it holds bytes, and return it.

    A block of 2**20 elements is drawn and repeated; drawing all of a large tensor would take seconds.
    """
    flat = tensor.view(-1)
    block = flat[:_RANDOM_ELEMENTS]
    if tensor.dtype == torch.uint8:
        block.random_(0, 256)
    else:
        block.uniform_(-1, 1)
    for piece in flat[_RANDOM_ELEMENTS:].split(_RANDOM_ELEMENTS):
        piece.copy_(block[: piece.numel()])
    return tensor


def random_bytes(size_bytes: int, device: torch.device | None = None) -> Tensor:
    """A tensor of random bytes."""
    return fill_random(torch.empty(size_bytes, dtype=torch.uint8, device=device))


def affordable_bytes(wanted_bytes: int) -> int:
    """`wanted_bytes`, or an eighth of the memory that is available where that is less."""
    return min(wanted_bytes, psutil.virtual_memory().available // _SHARE_OF_AVAILABLE)


def mapped_bytes(size_bytes: int) -> Tensor:
    """Page-aligned host memory of exactly this size, touched; released with the tensor."""
    return fill_random(torch.frombuffer(mapping(size_bytes), dtype=torch.uint8))


def mapping(size_bytes: int) -> mmap.mmap:
    """Private anonymous memory in huge pages where the system has them, as the executor's arenas are.

    Python's default would be shared memory, which is slower to copy; disks move small pages more slowly.
    """
    made = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        made.madvise(mmap.MADV_HUGEPAGE)
    return made


@contextmanager
def pinned_bytes(size_bytes: int) -> Iterator[Tensor]:
    """Host memory of exactly this size, registered with CUDA; `pin_memory` rounds up to a power of two."""
    tensor = mapped_bytes(size_bytes)
    with registered(tensor):
        yield tensor


@contextmanager
def registered(tensor: Tensor) -> Iterator[None]:
    """Register memory with CUDA as long as this lasts."""
    runtime = torch.cuda.cudart()
    status = int(runtime.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
    if status != 0:
        raise UserError(
            f"CUDA refuses to pin {format_bytes(tensor.nbytes)} of host memory (CUDA error {status}); "
            "lower --gpu-mem, which makes the probes' buffers smaller"
        )
    try:
        yield
    finally:
        runtime.cudaHostUnregister(tensor.data_ptr())
