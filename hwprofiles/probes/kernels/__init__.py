"""Triton kernels of a run, which the profile measures too; imported only where `usable` says so."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

TURING, AMPERE = (7, 5), (8, 0)
"""Compute capabilities: quantisation runs from the first on, attention from the second."""


def usable(device: torch.device, at_least: tuple[int, int] = TURING) -> bool:
    """Whether kernels run on this device: CUDA, not too old, with Triton installed."""
    return device.type == "cuda" and _has_triton() and _capability(device) >= at_least


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
