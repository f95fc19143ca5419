"""Attention rates: decode attention by a host's cores, by threads, by how K and V are stored and by query heads."""

from __future__ import annotations

from collections.abc import Sequence

from hwprofiles.points import AttentionPoint, GroupedAttention
from hwprofiles.profile import Host
from planner.packed_work import PACKED_BYTES, Reading

_IO_SHARE = 4
"""One core in this many is left to copies and disk threads while the CPU attends."""


def attention_threads(points: Sequence[AttentionPoint], cores: int, at: Reading) -> tuple[int, float]:
    """The fastest thread count that leaves some cores to I/O, and its rate."""
    most = max(cores - cores // _IO_SHARE, min(point.threads for point in points))
    allowed = [point for point in points if point.threads <= most]
    best = max(allowed, key=lambda point: (point.bytes_per_s.median, -point.threads))
    return best.threads, at(best.bytes_per_s)


def packed_attention(
    host: Host, unpacked_points: Sequence[AttentionPoint], threads: int, at: Reading
) -> float | None:
    """Values a second that the CPU attends to as they lie in 4 bits, by so many threads; None where it unpacks them.

    In older profiles it was measured with all cores: fewer are taken to be slower as in attention to unpacked ones.
    """
    if host.packed_attention:
        return rate_by(host.packed_attention, threads, at) / PACKED_BYTES
    if host.packed is None or host.packed.attend_values_per_s is None:
        return None
    rates = {point.threads: point.bytes_per_s.median for point in unpacked_points}
    return at(host.packed.attend_values_per_s) * min(1.0, rates[threads] / rates[max(rates)])


def query_head_share(
    grouped: GroupedAttention | None, points: Sequence[AttentionPoint], threads: int
) -> float | None:
    """How much longer attention takes for each further query head that shares a head of K and V.

    From attention with and without a group of them, by as many threads; None where it was not measured. It is
    arithmetic, which so many `threads` share: fewer take as much longer.
    """
    if grouped is None or all(point.threads != grouped.threads for point in points):
        return None
    alone = rate_by(points, grouped.threads, lambda rate: rate.median)
    seconds = 1 / grouped.bytes_per_s.median - 1 / alone
    of_one = max(0.0, seconds) / (grouped.group - 1) * grouped.threads / threads
    return of_one * rate_by(points, threads, lambda rate: rate.median)


def packed_head_share(host: Host, threads: int) -> float | None:
    """The same of attention to K and V in 4 bits."""
    return query_head_share(host.grouped_packed_attention, host.packed_attention, threads)


def rate_by(points: Sequence[AttentionPoint], threads: int, at: Reading) -> float:
    """Of so many threads, or of fewer if those were faster: what disturbs a measurement makes it slower only."""
    most = max(threads, min(point.threads for point in points))
    return max(at(point.bytes_per_s) for point in points if point.threads <= most)
