"""Contention: every link, CPU attention and the disk at work at the same time; and attention beside loads alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch

from hwprofiles.budget import Pace
from hwprofiles.points import Dtype, Rate
from hwprofiles.probes.attention import attention_memory, attention_worker
from hwprofiles.probes.buffers import affordable_bytes
from hwprofiles.probes.disk import ScratchFile, disk_load
from hwprofiles.probes.links import BOTH_BYTES, both_ways, link_ends
from hwprofiles.probes.timing import Worker, at_once
from hwprofiles.probes.visits import Visits
from hwprofiles.profile import BesideH2d, Concurrent
from hwprofiles.units import MIB

_DISK_BLOCK_BYTES = 16 * MIB
_DISK_THREADS = 4
_CACHE_DTYPE: Dtype = "bfloat16"
"""In which most models keep K and V."""
_SHORTEST_VISIT_S = 0.15
"""On two cores copies beside attention made from 5 to 11 GB/s in visits of 0.02 s, and from 12 to 16 in such ones."""
_BESIDE_H2D, _EVERYTHING = "attention beside loads", "everything at once"


def contention_points(num_gpus: int) -> int:
    """How many points `Contention` takes."""
    return 2 if num_gpus else 1


class Contention:
    """The rate of each part while others are at work, on visits some time apart.

    Each figure is that of its middle visit, whichever that is. A neighbour may slow the disk in one visit and the
    cores in another; and where two parts take from each other, the middle visit of one is that of the other. The best
    of each would be more than they get together.
    """

    def __init__(
        self,
        teams: Mapping[str, Mapping[str, Worker]],
        attention: tuple[Dtype, int],
        pace: Pace,
        num_visits: int,
    ) -> None:
        self._teams, self._attention = teams, attention
        self._visits = Visits(pace, num_visits)

    def visit(self) -> None:
        """Measure each team."""
        for name, workers in self._teams.items():
            slice_s = max(self._visits.slice_s(name), _SHORTEST_VISIT_S)
            for part, rate in at_once(workers, slice_s).items():
                self._visits.add((name, part), rate)

    def figures(self) -> Concurrent:
        """The middle visits; None for what the machine lacks."""
        dtype, threads = self._attention
        together, beside = self._middle(_EVERYTHING), self._middle(_BESIDE_H2D)
        return Concurrent(
            h2d_bytes_per_s=together.get("h2d"),
            d2h_bytes_per_s=together.get("d2h"),
            cpu_attention_bytes_per_s=together["attention"],
            disk_read_bytes_per_s=together["disk_read"],
            cpu_attention_dtype=dtype,
            cpu_attention_threads=threads,
            attention_beside_h2d=BesideH2d(
                dtype=_CACHE_DTYPE,
                threads=threads,
                attention_bytes_per_s=beside["attention"],
                h2d_bytes_per_s=beside["h2d"],
            )
            if beside
            else None,
        )

    def _middle(self, team: str) -> dict[str, Rate]:
        return {part: self._visits.middle((team, part)) for part in self._teams.get(team, ())}


@contextmanager
def contention(
    *,
    device: torch.device | None,
    link_bytes: int,
    attention: tuple[Dtype, int],
    working_set_bytes: int,
    file: ScratchFile,
    pace: Pace,
    num_visits: int,
) -> Iterator[Contention]:
    """Copies both ways, attention as (dtype, threads), and disk reads, with their buffers as long as this lasts.

    Copies walk through `working_set_bytes`, of which a processor's cache holds no more than a half.
    """
    dtype, threads = attention
    block_bytes = min(_DISK_BLOCK_BYTES, file.size_bytes)
    memory = attention_memory(working_set_bytes)
    teams = dict[str, Mapping[str, Worker]]()
    links = dict[str, Worker]()
    with ExitStack() as stack:
        disk = stack.enter_context(disk_load(file, False, block_bytes, _DISK_THREADS))
        if device is not None:
            size = min(BOTH_BYTES, link_bytes)
            walked = max(size, affordable_bytes(working_set_bytes) // size * size)
            links = both_ways(stack.enter_context(link_ends(device, walked)), size)
            beside = attention_worker(_CACHE_DTYPE, threads, memory)
            teams[_BESIDE_H2D] = {"attention": beside, "h2d": links["h2d"]}
        attend = attention_worker(dtype, threads, memory)
        teams[_EVERYTHING] = {"attention": attend, "disk_read": disk.worker(), **links}
        yield Contention(teams, attention, pace, num_visits)
