"""What the operating system, and CUDA, count as this process's memory, and the peaks of both."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from hwprofiles.process_memory import peak_resident_bytes, resident_bytes

__all__ = [
    "peak_gpu_bytes",
    "peak_resident_bytes",
    "reset_peak",
    "resident_bytes",
]
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""Resets VmHWM to VmRSS; see proc_pid_clear_refs(5)."""


def reset_peak() -> None:
    """Let the peaks begin anew; where the system refuses, the host's stays that of the whole process."""
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text(_RESET_PEAK)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def peak_gpu_bytes(device: torch.device) -> int:
    """The most that torch held of the device, and what is used beside it: the context, other processes."""
    free, total = torch.cuda.mem_get_info(device)
    beside = total - free - torch.cuda.memory_reserved(device)
    return torch.cuda.max_memory_reserved(device) + max(0, beside)
