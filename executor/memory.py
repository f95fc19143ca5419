"""What the operating system, and CUDA, count as this process's memory."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""Resets VmHWM to VmRSS; see proc_pid_clear_refs(5)."""


def resident_bytes() -> int:
    """Memory this process occupies now."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The most it occupied since the start, or since reset_peak."""
    return _status("VmHWM")


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


def _status(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(key)
