"""Weighed: what a process finds about its own memory; baseline.py prints it, process.py reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hwprofiles.points import Kernels, Margins


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """A process with everything loaded."""

    resident_bytes: int
    margins: Margins
    """Of its first GPU."""
    kernels_host_bytes: Mapping[Kernels, int]
    """What it keeps besides on the host of the kernels that runs call."""
