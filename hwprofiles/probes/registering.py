"""Registering: what the kernel keeps for host memory that a GPU may read and write."""

from __future__ import annotations

import psutil
import torch

from hwprofiles.budget import Pace
from hwprofiles.probes.buffers import affordable_bytes, mapped_bytes, registered
from hwprofiles.units import GIB

_BYTES = 8 * GIB
_DIGITS = 4


def kernel_share(device: torch.device, pace: Pace) -> float:
    """Bytes that vanish from what is available when touched memory is registered, for each byte registered."""
    pace.next(f"{device} registering host memory")
    torch.cuda.set_device(device)
    memory = mapped_bytes(affordable_bytes(_BYTES))
    before = psutil.virtual_memory().available
    with registered(memory):
        vanished = before - psutil.virtual_memory().available
    return round(max(0.0, vanished / memory.numel()), _DIGITS)
