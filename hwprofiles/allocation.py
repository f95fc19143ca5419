"""How this process's allocators keep memory: set alike where runs compute and where they are measured."""

from __future__ import annotations

import contextlib
import ctypes

from hwprofiles.units import MIB

CUDA_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
"""Environment of a run: what layers allocate and free does not fragment the GPU's memory beside the arenas."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
LARGE_BYTES, _KEPT_BYTES = 4 * MIB, 64 * MIB
"""From where on an allocation is a mapping; and what may stay free at the top of the heap."""


def give_back_large_tensors() -> None:
    """Let every large allocation of this process be a mapping of its own, which goes back when it is freed.

    glibc would keep freed tensors of up to 32 MiB in its heap, where they fragment: up to twice what is in use.
    Fresh pages cost a few percent of the time of a CPU that computes. Other C libraries are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def trim_heap() -> None:
    """Give back what the heap holds free; other C libraries than glibc are left alone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
