"""Packed work: what 4 bits cost where values are computed with, in values as docs/cost-model.md counts them.

At the rates that a profile has of the functions a run calls; in older profiles by the bytes that plain torch moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwprofiles.packing import GROUP_BYTES, GROUP_SIZE
from hwprofiles.points import Packed, Rate
from planner.piece import Piece

Reading = Callable[[Rate], float]
"""The figure that is taken of a measured rate."""

PACKED_BYTES = GROUP_BYTES / GROUP_SIZE
"""Of a value."""
DEQUANTISE_BYTES = 27
"""Bytes read and written for a value by the plain steps of hwprofiles/probes/quantize.py, its result left out:
nibble (2), to float32 (5), scale (8), shift (8), read for the result (4)."""
PROBE_BYTES = 2
"""Of a value that a profile's probe unpacks."""
QUANTISE_BYTES = 60
"""Likewise, the source left out: to float32 (4), extremes (8), five steps in float32 (40), codes (8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRates:
    """Values per second on the compute device."""

    unpack: float
    pack: float
    attend: float | None
    """K and V of decode attention that reads them packed; None where they are unpacked first."""
    issue_s: float
    """Host time to start one of these on a GPU; on the CPU it is part of the rates."""

    @classmethod
    def of(cls, measured: Packed | None, at: Reading, overhead: Reading) -> PackedRates | None:
        """As the profile has them; `at` reads a rate, `overhead` seconds."""
        if measured is None:
            return None
        attend, issue = measured.attend_values_per_s, measured.issue_s
        return cls(
            unpack=at(measured.unpack_values_per_s),
            pack=at(measured.pack_values_per_s),
            attend=at(attend) if attend else None,
            issue_s=overhead(issue) if issue else 0.0,
        )


def unpacked(
    numel: float, calls: int, rates: PackedRates | None, element_bytes: int, memory_bytes_per_s: float
) -> Piece:
    """Values out of 4 bits, in so many calls; larger ones than in the probe take as long to write as their bytes."""
    if rates is None:
        moved = numel * (DEQUANTISE_BYTES + element_bytes)
        return Piece(moved / memory_bytes_per_s, 0.0, moved)
    seconds = numel / rates.unpack + numel * (element_bytes - PROBE_BYTES) / memory_bytes_per_s
    return Piece(seconds, 0.0, numel * (PACKED_BYTES + element_bytes), calls * rates.issue_s)


def packed(numel: float, rates: PackedRates | None, element_bytes: int, memory_bytes_per_s: float) -> Piece:
    """Values into 4 bits."""
    if rates is None:
        moved = numel * (QUANTISE_BYTES + element_bytes)
        return Piece(moved / memory_bytes_per_s, 0.0, moved)
    return Piece(numel / rates.pack, 0.0, numel * (PACKED_BYTES + element_bytes))
