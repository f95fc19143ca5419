"""CPU attention: one query row a sequence, over a cache larger than the processor's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from hwprofiles.budget import DTYPES, Pace
from hwprofiles.points import AttentionPoint, Dtype, GroupedAttention
from hwprofiles.probes.buffers import fill_random
from hwprofiles.probes.compute import TORCH_DTYPE
from hwprofiles.probes.cpu_attention import Decode, attend_native, attend_plain
from hwprofiles.probes.timing import Worker, measured_rate, rounds_of

_HEADS, _HEAD_SIZE, _POSITIONS = 32, 128, 512
_GROUP = 8


def attention_curves(
    working_set_bytes: int, thread_counts: tuple[int, ...], pace: Pace
) -> dict[Dtype, tuple[AttentionPoint, ...]]:
    """Bytes of K and V per second for each dtype and number of threads."""
    curves: dict[Dtype, tuple[AttentionPoint, ...]] = {}
    for dtype in DTYPES:
        points = []
        for threads in thread_counts:
            slice_s = pace.next(f"cpu attention {dtype}, threads {threads}")
            worker = attention_worker(dtype, threads, working_set_bytes)
            with _torch_threads(threads):
                rate = measured_rate(rounds_of(worker.operation), worker.amount, slice_s)
            points.append(AttentionPoint(threads=threads, bytes_per_s=rate))
        curves[dtype] = tuple(points)
    return curves


def grouped_attention(working_set_bytes: int, threads: int, pace: Pace) -> dict[Dtype, GroupedAttention]:
    """The same for a group of query heads to each head of K and V, with this number of threads."""
    found: dict[Dtype, GroupedAttention] = {}
    for dtype in DTYPES:
        slice_s = pace.next(f"cpu attention {dtype}, {_GROUP} query heads to one")
        worker = attention_worker(dtype, threads, working_set_bytes, _GROUP)
        with _torch_threads(threads):
            rate = measured_rate(rounds_of(worker.operation), worker.amount, slice_s)
        found[dtype] = GroupedAttention(group=_GROUP, threads=threads, bytes_per_s=rate)
    return found


def attention_worker(dtype: Dtype, threads: int, working_set_bytes: int, group: int = 1) -> Worker:
    """Attention of one query row a sequence over all of the working set, by so many of torch's threads.

    The cache lies as a run keeps it, the position outermost, and a run calls the same function. `group` query heads
    share a head of K and V; there are as many query heads whatever the group.
    """
    torch_dtype, num_heads = TORCH_DTYPE[dtype], _HEADS // group
    sequence_bytes = 2 * num_heads * _POSITIONS * _HEAD_SIZE * torch_dtype.itemsize
    sequences = max(1, working_set_bytes // sequence_bytes)
    cache = fill_random(torch.empty(_POSITIONS, 2, sequences, num_heads * _HEAD_SIZE, dtype=torch_dtype))
    query = fill_random(torch.empty(sequences, _HEADS, 1, _HEAD_SIZE, dtype=torch_dtype))
    how = Decode(num_heads=num_heads, start=0, pads=None, scale=_HEAD_SIZE**-0.5, softcap=None)

    def attend() -> None:
        if attend_native(query, cache, how) is None:
            attend_plain(query, cache, how)

    return Worker(operation=attend, amount=cache.nbytes, prepare=lambda: torch.set_num_threads(threads))


def fastest(curves: Mapping[Dtype, tuple[AttentionPoint, ...]], max_threads: int) -> tuple[Dtype, int]:
    """The dtype and thread count with the highest rate among those of at most `max_threads` threads."""
    choices = [
        (point.bytes_per_s.median, dtype, point.threads)
        for dtype, points in curves.items()
        for point in points
        if point.threads <= max(max_threads, points[0].threads)
    ]
    _, dtype, threads = max(choices)
    return dtype, threads


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
