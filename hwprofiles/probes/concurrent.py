"""Contention: every link, CPU attention and the disk at work at the same time."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from hwprofiles.points import Dtype
from hwprofiles.probes.attention import attention_memory, attention_worker
from hwprofiles.probes.disk import ScratchFile, disk_load
from hwprofiles.probes.links import BOTH_BYTES, both_ways, link_ends
from hwprofiles.probes.timing import at_once
from hwprofiles.profile import Concurrent
from hwprofiles.units import MIB

_DISK_BLOCK_BYTES = 16 * MIB
_DISK_THREADS = 4


def measure_concurrent(
    *,
    device: torch.device | None,
    link_bytes: int,
    attention: tuple[Dtype, int],
    working_set_bytes: int,
    file: ScratchFile,
    slice_s: float,
) -> Concurrent:
    """Each one's rate while all run: copies both ways, attention as (dtype, threads), and disk reads."""
    dtype, threads = attention
    block_bytes = min(_DISK_BLOCK_BYTES, file.size_bytes)
    with ExitStack() as stack:
        disk = stack.enter_context(disk_load(file, False, block_bytes, _DISK_THREADS))
        workers = {
            "attention": attention_worker(dtype, threads, attention_memory(working_set_bytes)),
            "disk_read": disk.worker(),
        }
        if device is not None:
            size = min(BOTH_BYTES, link_bytes)
            workers |= both_ways(stack.enter_context(link_ends(device, size)), size)
        rates = at_once(workers, slice_s)
    return Concurrent(
        h2d_bytes_per_s=rates.get("h2d"),
        d2h_bytes_per_s=rates.get("d2h"),
        cpu_attention_bytes_per_s=rates["attention"],
        disk_read_bytes_per_s=rates["disk_read"],
        cpu_attention_dtype=dtype,
        cpu_attention_threads=threads,
    )
