"""Memory: bandwidth of large copies, on the host and on a GPU."""

from __future__ import annotations

import torch

from hwprofiles.points import Rate
from hwprofiles.probes.buffers import random_bytes
from hwprofiles.probes.timing import measured_rate, rounds_of


def memory_rate(device: torch.device, working_set_bytes: int, slice_s: float) -> Rate:
    """Bytes read plus bytes written per second by copies within one memory, with all of torch's threads."""
    source = random_bytes(working_set_bytes // 2, device)
    target = torch.empty_like(source)

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return measured_rate(
        rounds_of(lambda: target.copy_(source), finish), source.nbytes + target.nbytes, slice_s
    )
