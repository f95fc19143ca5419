"""What the operating system, and CUDA, count as this process's memory."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch

from hwprofiles.units import MIB

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""Resets VmHWM to VmRSS; see proc_pid_clear_refs(5)."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
_LARGE_BYTES, _KEPT_BYTES = 4 * MIB, 64 * MIB
"""From where on an allocation is a mapping; and what may stay free at the top of the heap."""


def give_back_large_tensors() -> None:
    """Let every large allocation of this process be a mapping of its own, which goes back when it is freed.

    glibc would keep freed tensors of up to 32 MiB in its heap, where they fragment: up to twice what is in use.
    Fresh pages cost a few percent of the time of a CPU that computes. Other C libraries are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


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
