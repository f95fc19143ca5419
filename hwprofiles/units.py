"""Byte sizes, rates and durations as people write them ("16GB", "1.2 GB/s", "1h30m"), in and out."""

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
_DURATION_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(
    r"\s*" + "".join(rf"(?:([0-9]*\.?[0-9]+)\s*{unit}\s*)?" for unit in _DURATION_S), re.IGNORECASE
)
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


def parse_duration(text: str) -> float:
    """Seconds of a duration such as "8h", "1h30m", "2d" or "45s"; a UserError names what is wrong."""
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        raise UserError(f"duration {text!r} is not understood; write for example 30m, 8h, 2d or 1h30m")
    parts = zip(match.groups(), _DURATION_S.values(), strict=True)
    seconds = sum(float(number) * size for number, size in parts if number)
    if not 0 < seconds < math.inf:
        raise UserError(f"duration {text!r} must be longer than nothing; write for example 30m or 8h")
    return seconds


def format_duration(seconds: float) -> str:
    """A duration as `parse_duration` takes it, such as "2h5m7s"; below a minute as `format_seconds`."""
    if seconds < 60:
        return format_seconds(seconds)
    left, text = round(seconds), ""
    for unit, size in _DURATION_S.items():
        number, left = divmod(left, size)
        text += f"{number}{unit}" * (number > 0)
    return text
