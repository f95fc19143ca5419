"""Links: copies between the host and one GPU, by size, pinned and pageable, and both ways at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hwprofiles.budget import Budget, Pace
from hwprofiles.points import Link, SizePoint
from hwprofiles.probes.buffers import mapped_bytes, pinned_bytes, random_bytes
from hwprofiles.probes.compute import synchronize
from hwprofiles.probes.timing import Rounds, Worker, at_once, measured_rate, rounds_of, sum_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Buffers of equal size at the ends of a link, one pair for each direction."""

    host_out: Tensor
    device_in: Tensor
    device_out: Tensor
    host_in: Tensor


@contextmanager
def link_ends(device: torch.device, size_bytes: int) -> Iterator[Ends]:
    """Pinned host memory and GPU memory; for an emulated GPU (device `cpu`) arenas in host memory."""
    with ExitStack() as stack:
        if device.type == "cuda":
            host = [stack.enter_context(pinned_bytes(size_bytes)) for _ in range(2)]
            inner = [random_bytes(size_bytes, device) for _ in range(2)]
        else:
            host = [mapped_bytes(size_bytes) for _ in range(2)]
            inner = [mapped_bytes(size_bytes) for _ in range(2)]
        try:
            yield Ends(host_out=host[0], device_in=inner[0], device_out=inner[1], host_in=host[1])
        finally:
            synchronize(device)


def measure_link(device: torch.device, largest_bytes: int, budget: Budget, pace: Pace) -> Link:
    """All figures of one link; sizes above `largest_bytes` are left out."""
    sizes = tuple(size for size in budget.link_sizes_bytes if size <= largest_bytes)
    with link_ends(device, max(sizes)) as ends:
        h2d_pinned = _by_size("h2d pinned", ends.device_in, ends.host_out, sizes, pace)
        d2h_pinned = _by_size("d2h pinned", ends.host_in, ends.device_out, sizes, pace)
        both = at_once(both_ways(ends, min(max(sizes), BOTH_BYTES)), pace.next("h2d and d2h at once"))
        pageable = random_bytes(max(sizes))
        h2d_pageable = _by_size("h2d pageable", ends.device_in, pageable, sizes, pace)
        d2h_pageable = _by_size("d2h pageable", pageable, ends.device_out, sizes, pace)
    return Link(
        h2d_pinned=h2d_pinned,
        d2h_pinned=d2h_pinned,
        h2d_pageable=h2d_pageable,
        d2h_pageable=d2h_pageable,
        both_bytes_per_s=sum_of(tuple(both.values())),
    )


def both_ways(ends: Ends, size_bytes: int) -> dict[str, Worker]:
    """A worker for each direction, on a stream or thread of its own, which copies so much at a time."""
    return {
        "h2d": _copy_worker(ends.device_in, ends.host_out, size_bytes),
        "d2h": _copy_worker(ends.host_in, ends.device_out, size_bytes),
    }


BOTH_BYTES = 64 * 2**20
"""Size of one copy where both directions run at once."""


def _by_size(
    label: str, target: Tensor, source: Tensor, sizes: tuple[int, ...], pace: Pace
) -> tuple[SizePoint, ...]:
    points = []
    for size in sizes:
        slice_s = pace.next(f"{label}, {size // 1024} KiB")
        rate = measured_rate(copies(target, source, size), size, slice_s)
        points.append(SizePoint(size_bytes=size, bytes_per_s=rate))
    return tuple(points)


def copies(target: Tensor, source: Tensor, size: int) -> Rounds:
    """Rounds of a copy, walking through the buffers so that small copies do not stay in a cache.

    Between host arenas a worker thread does them, as an executor has it.
    """
    copy = _walking(target, source, size)
    if target.is_cuda or source.is_cuda:
        device = target.device if target.is_cuda else source.device
        return rounds_of(copy, lambda: synchronize(device))
    run = rounds_of(copy)

    def run_in_thread(num_rounds: int) -> float:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return pool.submit(run, num_rounds).result()

    return run_in_thread


def _copy_worker(target: Tensor, source: Tensor, size: int) -> Worker:
    one = _walking(target, source, size)
    if not (target.is_cuda or source.is_cuda):
        return Worker(operation=one, amount=size, prepare=lambda: torch.set_num_threads(1))
    stream = torch.cuda.Stream(target.device if target.is_cuda else source.device)

    def copy() -> None:
        with torch.cuda.stream(stream):
            one()
        stream.synchronize()

    return Worker(operation=copy, amount=size)


def _walking(target: Tensor, source: Tensor, size: int) -> Callable[[], None]:
    """A copy of so many bytes, each time of the next ones."""
    starts = itertools.cycle(range(0, source.numel() - size + 1, size))

    def copy() -> None:
        start = next(starts)
        target[start : start + size].copy_(source[start : start + size], non_blocking=True)

    return copy
