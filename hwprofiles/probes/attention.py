"""CPU attention: one query row a sequence, over a cache much larger than the processor's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import cycle, product

import torch

from hwprofiles.budget import DTYPES, Pace
from hwprofiles.points import AttentionPoint, Dtype, GroupedAttention, Rate
from hwprofiles.probes.buffers import affordable_bytes, fill_random, mapping
from hwprofiles.probes.compute import TORCH_DTYPE
from hwprofiles.probes.cpu_attention import Decode, attend_plain, native_call
from hwprofiles.probes.timing import Worker, measured_rate, rounds_of
from hwprofiles.units import MIB

_HEADS, _HEAD_SIZE, _POSITIONS = 32, 128, 512
_GROUP = 8
_ROWS = 32
"""Sequences of a call, about as many as a gpu batch has."""
_WORKING_SETS = 4
"""That calls go through: a run comes back to a sequence when gigabytes of others have been read, and a processor keeps
some of what is little more than its cache."""


def attention_curves(
    memory: torch.Tensor, thread_counts: tuple[int, ...], pace: Pace
) -> dict[Dtype, tuple[AttentionPoint, ...]]:
    """Bytes of K and V per second for each dtype and number of threads: the better of two visits.

    What else runs on a shared host slows a virtual machine for seconds at a time, and never makes it faster. A run gets
    the number of threads that is fastest here, so a point that was measured in such seconds would cost every run.
    """
    slices_s: dict[tuple[Dtype, int], float] = {}
    best: dict[tuple[Dtype, int], Rate] = {}
    for dtype, threads in product(DTYPES, thread_counts):
        slices_s[dtype, threads] = pace.next(f"cpu attention {dtype}, threads {threads}") / 2
        best[dtype, threads] = _rate(dtype, threads, memory, slices_s[dtype, threads])
    for (dtype, threads), slice_s in slices_s.items():
        again = _rate(dtype, threads, memory, slice_s)
        best[dtype, threads] = max(best[dtype, threads], again, key=lambda rate: rate.median)
    return {
        dtype: tuple(
            AttentionPoint(threads=threads, bytes_per_s=best[dtype, threads]) for threads in thread_counts
        )
        for dtype in DTYPES
    }


def grouped_attention(memory: torch.Tensor, threads: int, pace: Pace) -> dict[Dtype, GroupedAttention]:
    """The same for a group of query heads to each head of K and V, with this number of threads."""
    found: dict[Dtype, GroupedAttention] = {}
    for dtype in DTYPES:
        slice_s = pace.next(f"cpu attention {dtype}, {_GROUP} query heads to one")
        rate = _rate(dtype, threads, memory, slice_s, _GROUP)
        found[dtype] = GroupedAttention(group=_GROUP, threads=threads, bytes_per_s=rate)
    return found


def _rate(dtype: Dtype, threads: int, memory: torch.Tensor, slice_s: float, group: int = 1) -> Rate:
    worker = attention_worker(dtype, threads, memory, group)
    with _torch_threads(threads):
        return measured_rate(rounds_of(worker.operation), worker.amount, slice_s)


def attention_memory(working_set_bytes: int) -> torch.Tensor:
    """What workers read, uint8: random numbers in (-1, 1) whichever dtype they are taken for."""
    least = _sequence_bytes(torch.float32, _HEADS)
    size = max(least, affordable_bytes(_WORKING_SETS * working_set_bytes) // MIB * MIB)
    return fill_random(torch.frombuffer(mapping(size), dtype=torch.float16)).view(torch.uint8)


def _sequence_bytes(dtype: torch.dtype, num_heads: int) -> int:
    """K and V of one sequence."""
    return 2 * num_heads * _POSITIONS * _HEAD_SIZE * dtype.itemsize


def attention_worker(dtype: Dtype, threads: int, memory: torch.Tensor, group: int = 1) -> Worker:
    """Attention of one query row a sequence by so many of torch's threads; each call reads other sequences.

    The cache lies as a run keeps it, the position outermost, and a run with a GPU makes the same calls, from and to
    tensors that are there. `group` query heads share a head of K and V; there are as many query heads in any group.
    """
    torch_dtype, num_heads = TORCH_DTYPE[dtype], _HEADS // group
    sequence_bytes = _sequence_bytes(torch_dtype, num_heads)
    rows = min(_ROWS, max(1, memory.nbytes // sequence_bytes))
    num_calls = memory.nbytes // (rows * sequence_bytes)
    caches = (
        memory[: num_calls * rows * sequence_bytes]
        .view(torch_dtype)
        .view(num_calls, _POSITIONS, 2, rows, num_heads * _HEAD_SIZE)
    )
    query = fill_random(torch.empty(rows, _HEADS, 1, _HEAD_SIZE))
    how = Decode(num_heads=num_heads, start=0, pads=None, scale=_HEAD_SIZE**-0.5, softcap=None)
    out = torch.empty_like(query)
    following = cycle(
        [
            native_call(query, cache, how, out, threads)
            or partial(attend_plain, query.to(torch_dtype), cache, how)
            for cache in caches.unbind()
        ]
    )

    def attend() -> None:
        next(following)()

    return Worker(
        operation=attend,
        amount=rows * sequence_bytes,
        prepare=lambda: torch.set_num_threads(threads),
    )


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
