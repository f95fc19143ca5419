"""CPU attention: one query row a sequence, over a cache much larger than the processor's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, product
from typing import Literal

import torch

from hwprofiles.budget import DTYPES
from hwprofiles.native_attention import find_attention
from hwprofiles.packing import quantised_bytes
from hwprofiles.points import AttentionPoint, Dtype, GroupedAttention, Rate
from hwprofiles.probes.buffers import affordable_bytes, fill_random, mapping
from hwprofiles.probes.compute import TORCH_DTYPE
from hwprofiles.probes.cpu_attention import Decode, attend_plain, native_call
from hwprofiles.probes.timing import Worker, measured_rate, rounds_of
from hwprofiles.probes.visits import Visits
from hwprofiles.units import MIB

_HEADS, _HEAD_SIZE, _POSITIONS = 32, 128, 512
_GROUP = 8
_ROWS = 32
"""Sequences of a call, about as many as a gpu batch has."""
_CLEARLY_SLOWER = 0.9
_WORKING_SETS = 4
"""That calls go through: a run comes back to a sequence when gigabytes of others have been read, and a processor keeps
some of what is little more than its cache."""


Kind = Dtype | Literal["packed"]
"""What K and V are stored as; packed: 4 bits."""
PACKED: Kind = "packed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Attention by what K and V are stored as and by threads, and by groups of query heads."""

    curves: Mapping[Dtype, tuple[AttentionPoint, ...]]
    grouped: Mapping[Dtype, GroupedAttention]
    packed: tuple[AttentionPoint, ...]
    """Empty where packed K and V are not attended to as they lie."""
    grouped_packed: GroupedAttention | None


def attention_points(num_thread_counts: int) -> int:
    """How many points `AttentionTimes` takes."""
    return (len(DTYPES) + 1) * (num_thread_counts + 1)


class AttentionTimes:
    """Bytes of K and V per second, for each kind and number of threads, and for groups by so many threads.

    The best visit to each point counts. A run gets the number of threads that is fastest here, so a point that was
    measured in slow seconds would cost every run.
    """

    def __init__(self, thread_counts: Sequence[int], grouped_threads: int, visits: Visits) -> None:
        self._kinds: tuple[Kind, ...] = (*DTYPES, *([PACKED] if find_attention() else []))
        self._thread_counts, self._grouped_threads = thread_counts, grouped_threads
        self._visits = visits

    def visit(self, memory: torch.Tensor) -> None:
        """Measure every point with such `attention_memory`, again where fewer threads have ever been clearly faster."""
        points = list(product(self._kinds, self._thread_counts))
        for kind, threads in points:
            self._measure(kind, threads, memory)
        for kind, threads in points:
            fewer = max((self._best(kind, n).median for n in self._thread_counts if n < threads), default=0.0)
            if self._best(kind, threads).median < _CLEARLY_SLOWER * fewer:
                self._measure(kind, threads, memory)
        for kind in self._kinds:
            slice_s = self._visits.slice_s(f"cpu attention {kind}, {_GROUP} query heads to one")
            self._visits.add((kind, _GROUP), _rate(kind, self._grouped_threads, memory, slice_s, _GROUP))

    def figures(self) -> Attention:
        """Of the visits there have been."""
        curves = {kind: self._curve(kind) for kind in self._kinds}
        grouped = {kind: self._grouped(kind) for kind in self._kinds}
        return Attention(
            curves={dtype: curves[dtype] for dtype in DTYPES},
            grouped={dtype: grouped[dtype] for dtype in DTYPES},
            packed=curves.get(PACKED, ()),
            grouped_packed=grouped.get(PACKED),
        )

    def _measure(self, kind: Kind, threads: int, memory: torch.Tensor) -> None:
        slice_s = self._visits.slice_s(f"cpu attention {kind}, threads {threads}")
        self._visits.add((kind, 1, threads), _rate(kind, threads, memory, slice_s))

    def _best(self, kind: Kind, threads: int) -> Rate:
        return self._visits.best((kind, 1, threads))

    def _curve(self, kind: Kind) -> tuple[AttentionPoint, ...]:
        return tuple(AttentionPoint(threads=n, bytes_per_s=self._best(kind, n)) for n in self._thread_counts)

    def _grouped(self, kind: Kind) -> GroupedAttention:
        rate = self._visits.best((kind, _GROUP))
        return GroupedAttention(group=_GROUP, threads=self._grouped_threads, bytes_per_s=rate)


def _rate(kind: Kind, threads: int, memory: torch.Tensor, slice_s: float, group: int = 1) -> Rate:
    worker = attention_worker(kind, threads, memory, group)
    with _torch_threads(threads):
        return measured_rate(rounds_of(worker.operation), worker.amount, slice_s)


def attention_memory(working_set_bytes: int) -> torch.Tensor:
    """What workers read, uint8: random numbers in (-1, 1) whichever dtype they are taken for."""
    least = _sequence_bytes("float32", _HEADS)
    size = max(least, affordable_bytes(_WORKING_SETS * working_set_bytes) // MIB * MIB)
    return fill_random(torch.frombuffer(mapping(size), dtype=torch.float16)).view(torch.uint8)


def _sequence_bytes(kind: Kind, num_heads: int) -> int:
    """K and V of one sequence."""
    return 2 * _POSITIONS * _vector_bytes(kind, num_heads)


def _vector_bytes(kind: Kind, num_heads: int) -> int:
    """K or V of one token."""
    numel = num_heads * _HEAD_SIZE
    return quantised_bytes(numel) if kind == "packed" else numel * TORCH_DTYPE[kind].itemsize


def attention_worker(kind: Kind, threads: int, memory: torch.Tensor, group: int = 1) -> Worker:
    """Attention of one query row a sequence by so many of torch's threads; each call reads other sequences.

    The cache lies as a run keeps it, the position outermost, and a run with a GPU makes the same calls, from and to
    tensors that are there. `group` query heads share a head of K and V; there are as many query heads in any group.
    """
    stored, num_heads = torch.uint8 if kind == "packed" else TORCH_DTYPE[kind], _HEADS // group
    sequence_bytes = _sequence_bytes(kind, num_heads)
    rows = min(_ROWS, max(1, memory.nbytes // sequence_bytes))
    num_calls = memory.nbytes // (rows * sequence_bytes)
    caches = (
        memory[: num_calls * rows * sequence_bytes]
        .view(stored)
        .view(num_calls, _POSITIONS, 2, rows, _vector_bytes(kind, num_heads) // stored.itemsize)
    )
    query = fill_random(torch.empty(rows, _HEADS, 1, _HEAD_SIZE))
    how = Decode(num_heads=num_heads, start=0, pads=None, scale=_HEAD_SIZE**-0.5, softcap=None)
    out = torch.empty_like(query)
    following = cycle(
        [
            native_call(query, cache, how, out, threads)
            or partial(attend_plain, query.to(stored), cache, how)
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
