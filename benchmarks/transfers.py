"""Host memory that a GPU copies from, the link and the disk, by the executor's own functions.

    python -m benchmarks.transfers -o benchmarks/results/functions/transfers.json --hw hw.yaml --directory /data

Setting memory up is held against torch's pin_memory, in turns; copies, reads and writes against what the profile
measured. Without a GPU only the disk is looked at.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.json_result import write_json_result
from benchmarks.setting import Setting, setting_of
from executor.arena import Arena
from executor.disk import DiskStore
from executor.transfer import copy_bytes
from hwprofiles.errors import UserError, run_cli
from hwprofiles.files import check_writable
from hwprofiles.points import DiskPoint, SizePoint
from hwprofiles.profile import HardwareProfile, load_profile
from hwprofiles.units import GIB, MIB
from planner.rates import make_rates

COLUMNS = ("what", "GB/s", "beside", "GB/s", "times")
_ROUNDS = 5
_SLAB_BYTES = 256 * MIB
"""About a layer of a model of 13 billion parameters in 4 bits."""
_FILE_BYTES = 4 * GIB
_CPU = torch.device("cpu")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of work and what it is held against."""

    what: str
    num_bytes: int
    seconds: Sequence[float]
    beside: str
    beside_bytes_per_s: float

    @property
    def bytes_per_s(self) -> float:
        """Of the median round."""
        return self.num_bytes / statistics.median(self.seconds)

    def cells(self) -> tuple[str, ...]:
        """In the order of COLUMNS."""
        rate, beside = self.bytes_per_s, self.beside_bytes_per_s
        return (self.what, f"{rate / 1e9:.2f}", self.beside, f"{beside / 1e9:.2f}", f"{rate / beside:.2f}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """One measurement. The contract of benchmarks/results/functions/transfers.json."""

    setting: Setting
    rows: Sequence[Row]


def set_up(num_bytes: int) -> Iterator[Row]:
    """A registered arena and torch's pinned memory of the same size, in turns, each given back before the next."""
    ours, theirs = list[float](), list[float]()
    for _ in range(_ROUNDS):
        seconds, arena = _timed(partial(Arena, num_bytes, _CPU, register=True))
        arena.close()
        ours.append(seconds)
        seconds, pinned = _timed(partial(torch.empty, num_bytes, dtype=torch.uint8, pin_memory=True))
        theirs.append(seconds)
        del arena, pinned
        torch._C._host_emptyCache()  # torch keeps what it has pinned
    rate = num_bytes / statistics.median(theirs)
    yield Row(
        what="set up",
        num_bytes=num_bytes,
        seconds=ours,
        beside="torch's pin_memory",
        beside_bytes_per_s=rate,
    )


def over_the_link(profile: HardwareProfile) -> Iterator[Row]:
    """A slab each way, from and to a registered arena."""
    arena = Arena(_SLAB_BYTES, _CPU, register=True)
    near = torch.empty(_SLAB_BYTES, dtype=torch.uint8, device="cuda")
    link = profile.gpus[0].link
    ways: tuple[tuple[str, torch.Tensor, torch.Tensor, Sequence[SizePoint]], ...] = (
        ("h2d", near, arena.tensor, link.h2d_pinned),
        ("d2h", arena.tensor, near, link.d2h_pinned),
    )
    try:
        for name, target, source, points in ways:
            yield Row(
                what=name,
                num_bytes=_SLAB_BYTES,
                seconds=[_timed(partial(_copied, target, source))[0] for _ in range(1 + _ROUNDS)][1:],
                beside="the profile",
                beside_bytes_per_s=max(point.bytes_per_s.median for point in points),
            )
    finally:
        arena.close()


def _copied(target: torch.Tensor, source: torch.Tensor) -> None:
    copy_bytes(target, source)
    torch.cuda.synchronize()


def on_disk(profile: HardwareProfile, directory: Path, *, register: bool) -> Iterator[Row]:
    """A file of a few slabs, written and read as a plan of this profile does.

    The profile's probe writes where something was written before.
    """
    if profile.disk is None:
        raise UserError(f"profile {profile.name} has no disk; measure it with: hwprofile measure --disk-dir")
    threads = make_rates(profile, "float16").io_threads
    arena, store = Arena(_SLAB_BYTES, _CPU, register=register), DiskStore(directory, threads=threads)
    try:
        arena.tensor.random_()
        file = store.create("slabs", _FILE_BYTES)
        ways: tuple[tuple[str, Callable[[int, torch.Tensor], None], Sequence[DiskPoint]], ...] = (
            ("disk write of new space", file.write, profile.disk.write),
            ("disk write", file.write, profile.disk.write),
            ("disk read", file.read, profile.disk.read),
        )
        for name, move, points in ways:
            yield Row(
                what=f"{name}, {threads} threads",
                num_bytes=_SLAB_BYTES,
                seconds=[
                    _timed(partial(move, offset, arena.tensor))[0]
                    for offset in range(0, _FILE_BYTES, _SLAB_BYTES)
                ],
                beside="the profile",
                beside_bytes_per_s=max(p.bytes_per_s.median for p in points if p.threads == threads),
            )
    finally:
        store.close()
        arena.close()


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def measure(profile: HardwareProfile, directory: Path, set_up_bytes: int) -> Transfers:
    """All rows this machine has."""
    rows, has_gpu = list[Row](), torch.cuda.is_available() and bool(profile.gpus)
    if has_gpu:
        rows += [*set_up(set_up_bytes), *over_the_link(profile)]
    rows += on_disk(profile, directory, register=has_gpu)
    command = f"python -m benchmarks.transfers --gib {set_up_bytes // GIB} --directory {directory}"
    return Transfers(setting=setting_of(profile, command), rows=rows)


def main() -> int:
    """Measure, print a table and write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfers", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="result as JSON")
    parser.add_argument("--hw", required=True, help="this machine's profile")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk")
    parser.add_argument("--gib", type=int, default=16, help="of memory to set up (default: 16)")
    arguments = parser.parse_args()
    check_writable(arguments.output)
    if arguments.gib < 1:
        raise UserError(f"--gib is {arguments.gib}; it must be 1 or more")
    found = measure(load_profile(arguments.hw), arguments.directory, arguments.gib * GIB)
    table = Table(*COLUMNS)
    for row in found.rows:
        table.add_row(*row.cells())
    Console().print(table)
    write_json_result(found, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
