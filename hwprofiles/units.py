"""Byte sizes and rates as people write them ("16GB", "2.5 GiB", "1.2 GB/s"), in and out."""

from __future__ import annotations

import math
import re

from hwprofiles.errors import UserError

KIB, MIB, GIB = 2**10, 2**20, 2**30
_SUFFIX = {
    "": 1, "B": 1,
    "K": 10**3, "KB": 10**3, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9, "T": 10**12, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(-?[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*?)(/s)?\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Bytes of a size such as "16GB" (10**9), "16GiB" (2**30) or "1e9"; a UserError names what is wrong."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].upper() not in _SUFFIX:
        raise UserError(f"size {text!r} is not understood; write a number and a unit, such as 16GB or 512MiB")
    value = float(match[1]) * _SUFFIX[match[2].upper()]
    if not math.isfinite(value) or value < 0:
        raise UserError(f"size {text!r} must not be negative; write for example 16GB")
    return round(value)


def format_bytes(num_bytes: float) -> str:
    """A size in binary units, such as "179.3 GiB"."""
    for unit, size in (("TiB", 2**40), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(num_bytes) >= (10 * size if unit == "TiB" else size):
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def format_rate(bytes_per_s: float) -> str:
    """A rate in decimal units, such as "55.0 GB/s"."""
    for unit, size in (("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6)):
        if bytes_per_s >= size:
            return f"{bytes_per_s / size:.1f} {unit}"
    return f"{bytes_per_s / 1e3:.1f} kB/s"


def format_flops(flops_per_s: float) -> str:
    """A compute rate, such as "766.0 TFLOP/s"."""
    if flops_per_s >= 1e12:
        return f"{flops_per_s / 1e12:.1f} TFLOP/s"
    return f"{flops_per_s / 1e9:.1f} GFLOP/s"


def format_seconds(seconds: float) -> str:
    """A duration, such as "1.32 s", "850 ms" or "2:05:07"."""
    if seconds >= 3600:
        return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d}:{int(seconds) % 60:02d}"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.1f} us"
