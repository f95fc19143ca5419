"""Contention: every link, CPU attention and the disk at work at the same time; and attention beside loads alone."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from hwprofiles.points import Dtype
from hwprofiles.probes.attention import attention_memory, attention_worker
from hwprofiles.probes.buffers import affordable_bytes
from hwprofiles.probes.disk import ScratchFile, disk_load
from hwprofiles.probes.links import BOTH_BYTES, both_ways, link_ends
from hwprofiles.probes.timing import Worker, at_once
from hwprofiles.profile import BesideH2d, Concurrent
from hwprofiles.units import MIB

_DISK_BLOCK_BYTES = 16 * MIB
_DISK_THREADS = 4
_CACHE_DTYPE: Dtype = "bfloat16"
"""In which most models keep K and V."""


def measure_concurrent(
    *,
    device: torch.device | None,
    link_bytes: int,
    attention: tuple[Dtype, int],
    working_set_bytes: int,
    file: ScratchFile,
    slice_s: float,
) -> Concurrent:
    """Each one's rate while all run: copies both ways, attention as (dtype, threads), and disk reads.

    Copies walk through `working_set_bytes`, of which a processor's cache holds no more than a half.
    """
    dtype, threads = attention
    block_bytes = min(_DISK_BLOCK_BYTES, file.size_bytes)
    memory = attention_memory(working_set_bytes)
    links, beside = dict[str, Worker](), None
    with ExitStack() as stack:
        disk = stack.enter_context(disk_load(file, False, block_bytes, _DISK_THREADS))
        if device is not None:
            size = min(BOTH_BYTES, link_bytes)
            walked = max(size, affordable_bytes(working_set_bytes) // size * size)
            links = both_ways(stack.enter_context(link_ends(device, walked)), size)
            beside = _beside_h2d(links["h2d"], threads, memory, slice_s / 2)
        attend, read = attention_worker(dtype, threads, memory), disk.worker()
        rates = at_once({"attention": attend, "disk_read": read, **links}, slice_s)
    return Concurrent(
        h2d_bytes_per_s=rates.get("h2d"),
        d2h_bytes_per_s=rates.get("d2h"),
        cpu_attention_bytes_per_s=rates["attention"],
        disk_read_bytes_per_s=rates["disk_read"],
        cpu_attention_dtype=dtype,
        cpu_attention_threads=threads,
        attention_beside_h2d=beside,
    )


def _beside_h2d(load: Worker, threads: int, memory: torch.Tensor, slice_s: float) -> BesideH2d:
    rates = at_once({"attention": attention_worker(_CACHE_DTYPE, threads, memory), "h2d": load}, slice_s)
    return BesideH2d(
        dtype=_CACHE_DTYPE,
        threads=threads,
        attention_bytes_per_s=rates["attention"],
        h2d_bytes_per_s=rates["h2d"],
    )
