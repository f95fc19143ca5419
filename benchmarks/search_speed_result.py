"""What benchmarks.search_speed found. The contract of benchmarks/results/search-speed.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A command's runs."""

    group: str
    """imports, layers or open."""
    label: str
    command: str
    wall_s: Sequence[float]
    """Of the whole process, run by run."""
    cpu_s: Sequence[float]
    """User and system time of the same runs."""

    @property
    def median_wall_s(self) -> float:
        """Of the median run."""
        return median(self.wall_s)

    @property
    def median_cpu_s(self) -> float:
        """Of the median run."""
        return median(self.cpu_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpeed:
    """One measurement."""

    created: str
    commit: str
    machine: Mapping[str, object]
    load_average: float
    """Of the machine when it began: what others did; at rest it is near 0."""
    rows: Sequence[Timed]
