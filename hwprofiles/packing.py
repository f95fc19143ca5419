"""Packing: how values of 4 bits lie in bytes; quantize.py of the probes fills them."""

from __future__ import annotations

GROUP_SIZE = 64
GROUP_BYTES = GROUP_SIZE // 2 + 4
"""64 values of 4 bits and two fp16 constants."""


def quantised_bytes(numel: int) -> int:
    """Packed 4-bit values, padded to whole groups, with their constants."""
    return -(-numel // GROUP_SIZE) * GROUP_BYTES
