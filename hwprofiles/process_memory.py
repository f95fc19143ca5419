"""What the operating system counts as this process's memory."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Memory this process occupies now."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The most it has occupied since the start, or since the kernel was told to count anew."""
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(key)
