"""Registering: what is kept for host memory that a GPU may read and write, by the kernel and on the GPU."""

from __future__ import annotations

import psutil
import torch

from hwprofiles.budget import Pace
from hwprofiles.probes.buffers import affordable_bytes, mapped_bytes, registered
from hwprofiles.units import GIB

_BYTES = 8 * GIB
_DIGITS = 5


def registered_shares(device: torch.device, pace: Pace) -> tuple[float, float]:
    """Bytes that vanish from what is available, and from what is free on the GPU, for each byte registered.

    The memory has been touched. On the GPU it is the table of its pages.
    """
    pace.next(f"{device} registering host memory")
    torch.cuda.set_device(device)
    memory = mapped_bytes(affordable_bytes(_BYTES))
    before = _left(device)
    with registered(memory):
        after = _left(device)
    on_host, on_gpu = (
        round(max(0, b - a) / memory.numel(), _DIGITS) for b, a in zip(before, after, strict=True)
    )
    return on_host, on_gpu


def _left(device: torch.device) -> tuple[int, int]:
    """Available on the host, and free on the GPU."""
    free: int = torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available, free
