"""Disk rates: what reads and writes get by bytes in flight, alone, both at once, and beside a GPU's run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from hwprofiles.points import DiskPoint
from hwprofiles.profile import Disk, HardwareProfile
from hwprofiles.units import MIB
from planner.packed_work import Reading
from planner.rate_curve import UNUSED, Curve

_WORTH_A_THREAD = 1.03
"""More disk threads are used only where they bring 3% or more."""
_LARGE_BLOCK = 4 * MIB
"""From here on a disk's rate grows with the bytes in flight, if at all, however many threads have asked for them."""
_IN_A_RUN = 1 / 4


def disk_curve(points: Sequence[DiskPoint], threads: int, at: Reading) -> Curve:
    """Rate by bytes in flight: small blocks from one thread up to `threads`, then large blocks of any.

    Below the smallest block nothing is measured; half-way between a fixed time and a fixed rate is assumed. A disk that
    others use is a fifth faster or slower from second to second: where more in flight seems slower, rates are averaged.
    """
    if not points:
        return UNUSED
    most = max((p.threads for p in points if p.threads <= threads), default=min(p.threads for p in points))
    smallest = min(point.block_bytes for point in points)
    best: dict[float, float] = {}
    for point in points:
        if point.threads == most or (point.threads < most and point.block_bytes == smallest):
            in_flight = _in_flight(point)
            best[in_flight] = max(best.get(in_flight, 0.0), at(point.bytes_per_s))
    large = [point for point in points if point.block_bytes >= _LARGE_BLOCK]
    return Curve(tuple(sorted({**best, **_rising(large, at)}.items())), below=0.5)


def full_rate(points: Sequence[DiskPoint]) -> float:
    """Bytes per second with as much in flight as brings anything; the median."""
    return disk_curve(points, max(point.threads for point in points), lambda rate: rate.median).best


def read_threads(disk: Disk | None) -> int:
    """The fewest threads that read about as fast as any number."""
    if disk is None:
        return 1
    best = 1, 0.0
    for threads in sorted({point.threads for point in disk.read}):
        rate = full_rate([point for point in disk.read if point.threads == threads])
        if rate > best[1] * _WORTH_A_THREAD:
            best = threads, rate
    return best[0]


def disk_parallel(disk: Disk | None) -> float:
    """Reading's and writing's shares of their full rate while both are at work, added."""
    if disk is None:
        return 1.0
    read, write = disk.both_read_bytes_per_s.median, disk.both_write_bytes_per_s.median
    return parts_at_work([read / full_rate(disk.read), write / full_rate(disk.write)])


def parts_at_work(shares: Sequence[float]) -> float:
    """The shares of their full rate that parts keep while all are at work, added: from 1 to their number."""
    return max(1.0, sum(min(1.0, share) for share in shares))


def disk_in_a_run(profile: HardwareProfile) -> float:
    """What a disk does in a run beside a GPU, of what it does alone: a quarter of the way to what all parts leave it.

    On three H200 hosts plans that read 13 GB of weights a pass got 0.77 to 1.11 of it, and what is taken here is 0.83
    to 0.94; beside copies and attention the probe finds 0.3 to 0.76.
    """
    together, disk = profile.concurrent, profile.disk
    if together is None or disk is None or not profile.gpus or profile.gpus[0].emulated:
        return 1.0
    return 1 - _IN_A_RUN * max(0.0, 1 - together.disk_read_bytes_per_s.median / full_rate(disk.read))


def _in_flight(point: DiskPoint) -> float:
    return float(point.block_bytes * point.threads)


def _rising(points: Iterable[DiskPoint], at: Reading) -> Mapping[float, float]:
    """The rates nearest to those measured that do not fall with the bytes in flight: neighbours that do are pooled."""
    by_size: defaultdict[float, list[float]] = defaultdict(list)
    for point in points:
        by_size[_in_flight(point)].append(at(point.bytes_per_s))
    pools: list[tuple[list[float], list[float]]] = []
    for size, rates in sorted(by_size.items()):
        pools.append(([size], rates))
        while len(pools) > 1 and _mean(pools[-2][1]) > _mean(pools[-1][1]):
            sizes, fewer = pools.pop()
            pools[-1][0].extend(sizes)
            pools[-1][1].extend(fewer)
    return {size: _mean(rates) for sizes, rates in pools for size in sizes}


def _mean(rates: Sequence[float]) -> float:
    return sum(rates) / len(rates)
