"""Several GPUs: their links to the host at work at the same time, and copies from one GPU to another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import pairwise

import torch

from hwprofiles.budget import Pace
from hwprofiles.points import Rate
from hwprofiles.probes.buffers import random_bytes
from hwprofiles.probes.compute import synchronize
from hwprofiles.probes.links import both_ways, copies, link_ends
from hwprofiles.probes.timing import Worker, at_once, measured_rate, sum_of
from hwprofiles.profile import LinksAtOnce

Together = Callable[[Mapping[str, Worker], float], dict[str, Rate]]
"""The rate of each worker while all of them run, over about so many seconds."""
_WAYS = {"h2d": ("h2d",), "d2h": ("d2h",), "both": ("h2d", "d2h")}


def num_points(num_gpus: int) -> int:
    """How many points both functions below take; none with a single GPU."""
    return len(_WAYS) * num_gpus + num_gpus - 1 if num_gpus > 1 else 0


def links_at_once(
    devices: Sequence[torch.device], near: Sequence[Sequence[int]], size_bytes: int, pace: Pace
) -> tuple[LinksAtOnce, ...]:
    """The links of 1, 2, ... GPUs at work; of each the processors that it is `near`, beside which its buffers lie.

    Copies of `size_bytes` between registered host memory and the GPU, a stream and a thread for each way.
    """
    with ExitStack() as stack:
        workers = []
        for device, cpus in zip(devices, near, strict=True):
            with _beside(device, cpus):
                ends = stack.enter_context(link_ends(device, size_bytes))
            workers.append(both_ways(ends, size_bytes))
        return totals_by_count(workers, pace)


def totals_by_count(
    workers: Sequence[Mapping[str, Worker]], pace: Pace, together: Together = at_once
) -> tuple[LinksAtOnce, ...]:
    """For the first 1, 2, ... links the totals each way and both; of each link a worker for `h2d` and for `d2h`."""
    return tuple(_totals(workers[:count], pace, together) for count in range(1, len(workers) + 1))


def _totals(workers: Sequence[Mapping[str, Worker]], pace: Pace, together: Together) -> LinksAtOnce:
    count, found = len(workers), dict[str, Rate]()
    for name, ways in _WAYS.items():
        slice_s = pace.next(f"links of {count} GPUs at once, {name}")
        team = {f"{way} {n}": own[way] for n, own in enumerate(workers) for way in ways}
        found[name] = sum_of(tuple(together(team, slice_s).values()))
    return LinksAtOnce(
        num_gpus=count,
        h2d_bytes_per_s=found["h2d"],
        d2h_bytes_per_s=found["d2h"],
        both_bytes_per_s=found["both"],
    )


def gpu_to_gpu(devices: Sequence[torch.device], size_bytes: int, pace: Pace) -> Rate:
    """Copies from each GPU to the next, one pair after the other; the slowest pair's, as a pipeline has them all."""
    rates = []
    for source, target in pairwise(devices):
        slice_s = pace.next(f"{source} to {target}")
        there, here = random_bytes(size_bytes, target), random_bytes(size_bytes, source)
        rates.append(measured_rate(copies(there, here, size_bytes), size_bytes, slice_s))
        synchronize(source)
    return min(rates, key=lambda rate: rate.median)


@contextmanager
def _beside(device: torch.device, cpus: Sequence[int]) -> Iterator[None]:
    """This thread, and it alone, on these of its processors, so that memory that it touches lies beside them.

    On all of them where that is refused. Memory is registered with the device's own context.
    """
    allowed, threads = sorted(os.sched_getaffinity(0)), torch.get_num_threads()
    wanted = {allowed[position] for position in cpus if position < len(allowed)}
    with suppress(OSError):
        if wanted:
            os.sched_setaffinity(0, wanted)
    torch.set_num_threads(1)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, allowed)
