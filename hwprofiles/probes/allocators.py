"""Torch's allocator on a GPU: what it holds beyond what was asked for, while tensors come and go as in layers."""

from __future__ import annotations

import torch

from hwprofiles.probes.tensors import allocations

_WIDTH = 4096
_TOKENS = (4096, 4096, 2500, 700) * 3 + (64, 48, 33) * 4
"""Of chunks of a prefill, the last one shorter, and of decode steps, whose rows finish one by one."""


def allocator_overhead(device: torch.device) -> tuple[int, int]:
    """Bytes of sizes rounded up, and bytes held but free, by the allocator's own counters at their peaks.

    The environment sets the allocator as for a run.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    for _ in allocations(device, torch.float16, _WIDTH, _TOKENS):
        pass
    torch.cuda.synchronize(device)
    peaks = torch.cuda.memory_stats(device)
    asked, allocated, reserved = (
        int(peaks[f"{kind}_bytes.all.peak"]) for kind in ("requested", "allocated", "reserved")
    )
    torch.cuda.empty_cache()
    return max(0, allocated - asked), max(0, reserved - allocated)
