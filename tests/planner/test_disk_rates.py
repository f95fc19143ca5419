"""Disk rates: noise of large blocks is pooled, what is measured of small ones stays."""

from __future__ import annotations

import pytest

from hwprofiles.points import DiskPoint, Rate
from hwprofiles.profile import Disk
from hwprofiles.units import KIB, MIB
from planner.disk_rates import disk_curve, disk_parallel, full_rate, read_threads
from planner.rate_curve import UNUSED, Curve


def points(*found: tuple[int, int, float]) -> tuple[DiskPoint, ...]:
    """Of (block in bytes, threads, GB/s)."""
    return tuple(
        DiskPoint(block_bytes=block, threads=threads, bytes_per_s=Rate(median=1e9 * rate))
        for block, threads, rate in found
    )


def disk(read: tuple[DiskPoint, ...], both: float) -> Disk:
    """Writes as it reads; both ways at once at this rate each."""
    rate = Rate(median=1e9 * both)
    return Disk(
        directory="/tmp",
        free_bytes=1,
        direct=True,
        read=read,
        write=read,
        both_read_bytes_per_s=rate,
        both_write_bytes_per_s=rate,
    )


def test_a_rate_that_falls_with_the_bytes_in_flight_is_noise() -> None:
    """Of 4 and 16 MiB in flight the mean counts, and of both points with 16; 64 MiB are faster and stay so."""
    read = points((4 * MIB, 1, 2.4), (4 * MIB, 4, 1.5), (16 * MIB, 1, 2.1), (16 * MIB, 4, 2.5))
    curve = disk_curve(read, 1, lambda rate: rate.median)
    assert [rate for _, rate in curve.points] == pytest.approx([2.0e9, 2.0e9, 2.5e9])
    assert full_rate(read) == pytest.approx(2.5e9)


def test_a_disk_that_rises_is_as_measured() -> None:
    """Small blocks from one thread up to those that are used, then large ones."""
    read = points((16 * KIB, 1, 0.1), (16 * KIB, 4, 0.4), (MIB, 1, 1.0), (MIB, 4, 1.6), (16 * MIB, 4, 3.0))
    curve = disk_curve(read, 4, lambda rate: rate.median)
    expected = [(16 * KIB, 0.1e9), (64 * KIB, 0.4e9), (4 * MIB, 1.6e9), (64 * MIB, 3.0e9)]
    assert [pair for point in curve.points for pair in point] == pytest.approx(
        [value for pair in expected for value in pair]
    )


def test_one_lucky_point_chooses_no_threads() -> None:
    """Four threads that beat one with a single block, and are beaten with the other, are not worth it."""
    read = points((4 * MIB, 1, 1.9), (16 * MIB, 1, 2.0), (4 * MIB, 4, 2.2), (16 * MIB, 4, 1.7))
    assert read_threads(disk(read, 1.0)) == 1
    assert read_threads(None) == 1


def test_reads_and_writes_at_once() -> None:
    """Each at half of its rate is one disk's work, each at its own is two's."""
    read = points((16 * MIB, 1, 2.0))
    assert disk_parallel(disk(read, 1.0)) == pytest.approx(1.0)
    assert disk_parallel(disk(read, 1.5)) == pytest.approx(1.5)
    assert disk_parallel(disk(read, 3.0)) == pytest.approx(2.0)
    assert disk_parallel(None) == 1.0
    assert disk_curve((), 1, lambda rate: rate.median) == UNUSED


def test_curves_are_scaled_from_a_size_on() -> None:
    """All of one, or what has many rows; what is unused stays unused."""
    curve = Curve(((1.0, 2.0), (10.0, 4.0)), below=0.5)
    assert curve.scaled(3.0) == Curve(((1.0, 6.0), (10.0, 12.0)), below=0.5)
    assert curve.scaled(3.0, first=10.0) == Curve(((1.0, 2.0), (10.0, 12.0)), below=0.5)
    assert UNUSED.scaled(3.0) == UNUSED
