"""Weighed: what a process finds about its own memory; baseline.py prints it, process.py reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Bytes that an allocator holds at its peak beyond what was asked for at that peak."""

    rounding_bytes: int = 0
    """Of sizes rounded up."""
    fragmentation_bytes: int = 0
    """Held, but free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """A process with everything loaded; `library_bytes` and `gpu` are of its first GPU."""

    resident_bytes: int
    host: Overhead
    library_bytes: int
    """What the GPU's context grows by when a run's kernels are loaded."""
    gpu: Overhead
