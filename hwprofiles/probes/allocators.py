"""Allocators: what they hold beyond what was asked for, while tensors come and go as in layers."""

from __future__ import annotations

import torch

from hwprofiles.allocation import give_back_large_tensors, trim_heap
from hwprofiles.probes.tensors import allocations
from hwprofiles.probes.weighed import Overhead
from hwprofiles.process_memory import resident_bytes

_HOST_WIDTHS = (2048, 1024, 512)
_HOST_TOKENS = (1024, 700, 300) * 3 + (8,) * 8
_GPU_WIDTH = 4096
_GPU_TOKENS = (4096, 4096, 2500, 700) * 3 + (64, 48, 33) * 4
"""Of chunks of a prefill, the last one shorter, and of decode steps, whose rows finish one by one."""


def host_overhead() -> Overhead:
    """Of the host's allocator, set as in a run that computes on the CPU; rounding cannot be told from the rest."""
    give_back_large_tensors()
    worst = 0
    for width in _HOST_WIDTHS:
        trim_heap()
        before, asked, occupied = resident_bytes(), 0, 0
        for held in allocations(torch.device("cpu"), torch.float32, width, _HOST_TOKENS):
            asked, occupied = max(asked, held), max(occupied, resident_bytes() - before)
        worst = max(worst, occupied - asked)
    return Overhead(fragmentation_bytes=worst)


def gpu_overhead(device: torch.device) -> Overhead:
    """Of torch's caching allocator, as its own counters have it; the environment sets it as for a run."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    for _ in allocations(device, torch.float16, _GPU_WIDTH, _GPU_TOKENS):
        pass
    torch.cuda.synchronize(device)
    peaks = torch.cuda.memory_stats(device)
    asked, allocated, reserved = (
        int(peaks[f"{kind}_bytes.all.peak"]) for kind in ("requested", "allocated", "reserved")
    )
    torch.cuda.empty_cache()
    return Overhead(
        rounding_bytes=max(0, allocated - asked), fragmentation_bytes=max(0, reserved - allocated)
    )
