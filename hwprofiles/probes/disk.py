"""Disk: reads and writes past the page cache, by block size and number of threads, and both at once."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from hwprofiles.budget import Budget, Pace
from hwprofiles.errors import UserError
from hwprofiles.points import DiskPoint
from hwprofiles.probes.buffers import mapping
from hwprofiles.probes.timing import Worker, at_once, measured_rate
from hwprofiles.probes.visits import Visits
from hwprofiles.profile import Disk
from hwprofiles.units import MIB, format_bytes

_SPARE_BYTES = 64 * MIB
_FILL_BLOCK_BYTES = 16 * MIB
_NUM_VISITS = 2
_NO_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchFile:
    """An open file of random data that has no name any more, or loses it at the end."""

    descriptor: int
    size_bytes: int
    direct: bool


@contextmanager
def scratch_file(directory: Path, size_bytes: int) -> Iterator[ScratchFile]:
    """A filled file in `directory`, gone afterwards whatever happens.

    Its name is removed as soon as it is open, so that not even a killed process leaves it behind; where a
    file system refuses that, it is removed at the end. UserError when it cannot be made there.
    """
    check_directory(directory, size_bytes)
    path = directory / f".hwprofile-{os.getpid()}-{time.monotonic_ns()}.tmp"
    descriptor = -1
    try:
        descriptor, direct = _open(path)
        _remove(path)
        direct = _fill(descriptor, size_bytes, direct)
        yield ScratchFile(descriptor=descriptor, size_bytes=size_bytes, direct=direct)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"disk probe failed in {directory} ({reason}); choose another --disk-dir") from None
    finally:
        _remove(path)
        if descriptor >= 0:
            os.close(descriptor)


def check_directory(directory: Path, size_bytes: int) -> None:
    """A UserError unless the directory exists, can be written and has room for the probe's file."""
    if not directory.is_dir():
        raise UserError(
            f"disk directory {directory} is not a directory; create it or choose another --disk-dir"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UserError(f"disk directory {directory} cannot be written; choose another --disk-dir")
    free = shutil.disk_usage(directory).free
    if free < size_bytes + _SPARE_BYTES:
        raise UserError(
            f"disk probe needs {format_bytes(size_bytes + _SPARE_BYTES)} in {directory}, "
            f"{format_bytes(free)} are free; free some or choose another --disk-dir"
        )


def measure_disk(
    directory: Path,
    file: ScratchFile,
    budget: Budget,
    pace: Pace,
    between: Callable[[], object] = lambda: None,
) -> Disk:
    """All figures of the directory's disk, half-way between two visits; `between` is called between these."""
    visits = Visits(pace, _NUM_VISITS)
    sizes = tuple(product(budget.disk_block_bytes, budget.disk_threads))
    for visit in range(_NUM_VISITS):
        if visit:
            between()
        for is_write, (block, threads) in product((False, True), sizes):
            kind = "write" if is_write else "read"
            slice_s = visits.slice_s(f"disk {kind}, {threads} x {block // MIB} MiB")
            with disk_load(file, is_write, block, threads) as load:
                rate = measured_rate(load.run, load.round_bytes, slice_s)
            visits.add((is_write, block, threads), rate)
        _visit_both(file, budget, visits)
    read, write = (
        tuple(
            DiskPoint(block_bytes=block, threads=threads, bytes_per_s=visits.mean((is_write, block, threads)))
            for block, threads in sizes
        )
        for is_write in (False, True)
    )
    return Disk(
        directory=str(directory.resolve()),
        free_bytes=shutil.disk_usage(directory).free + file.size_bytes,
        direct=file.direct,
        read=read,
        write=write,
        both_read_bytes_per_s=visits.mean("read"),
        both_write_bytes_per_s=visits.mean("write"),
    )


def _visit_both(file: ScratchFile, budget: Budget, visits: Visits) -> None:
    """Reads and writes at once."""
    block, threads = max(budget.disk_block_bytes), max(1, max(budget.disk_threads) // 2)
    slice_s = visits.slice_s("disk read and write at once")
    with (
        disk_load(file, False, block, threads) as reads,
        disk_load(file, True, block, threads) as writes,
    ):
        for kind, rate in at_once({"read": reads.worker(), "write": writes.worker()}, slice_s).items():
            visits.add(kind, rate)


@dataclass(slots=True, kw_only=True)
class DiskLoad:
    """Threads that each move one block a round, walking through a part of the file of their own."""

    file: ScratchFile
    is_write: bool
    block_bytes: int
    blocks: list[mmap.mmap]
    pool: ThreadPoolExecutor
    num_rounds_done: int = field(default=0)

    @property
    def round_bytes(self) -> int:
        return self.block_bytes * len(self.blocks)

    def run(self, num_rounds: int) -> float:
        """Timed rounds; without O_DIRECT what was written is flushed and what is read is not in the cache."""
        if not self.file.direct and not self.is_write:
            os.posix_fadvise(self.file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        self._move(num_rounds)
        return time.perf_counter() - start

    def worker(self) -> Worker:
        """One round, for running beside other workers."""
        return Worker(operation=lambda: self.run(1), amount=self.round_bytes)

    def _move(self, num_rounds: int) -> None:
        first = self.num_rounds_done
        self.num_rounds_done += num_rounds
        tasks = [
            self.pool.submit(self._walk, index, range(first, first + num_rounds))
            for index in range(len(self.blocks))
        ]
        for task in tasks:
            task.result()
        if self.is_write and not self.file.direct:
            os.fsync(self.file.descriptor)

    def _walk(self, index: int, rounds: range) -> None:
        num_blocks = max(1, self.file.size_bytes // self.round_bytes)
        transfer: Callable[[int, list[mmap.mmap], int], int] = os.pwritev if self.is_write else os.preadv
        for number in rounds:
            place = (index * num_blocks + number % num_blocks) % (self.file.size_bytes // self.block_bytes)
            moved = transfer(self.file.descriptor, [self.blocks[index]], place * self.block_bytes)
            if moved != self.block_bytes:
                raise OSError(errno.EIO, f"moved {moved} of {self.block_bytes} bytes")


@contextmanager
def disk_load(file: ScratchFile, is_write: bool, block_bytes: int, threads: int) -> Iterator[DiskLoad]:
    """`threads` threads with a page-aligned random block each."""
    with ExitStack() as stack:
        make = _random_block if is_write else mapping
        blocks = [make(block_bytes) for _ in range(threads)]
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        yield DiskLoad(file=file, is_write=is_write, block_bytes=block_bytes, blocks=blocks, pool=pool)


def _open(path: Path) -> tuple[int, bool]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600), True
    except OSError as error:
        if error.errno not in _NO_DIRECT:
            raise
    path.unlink(missing_ok=True)  # some file systems create the file before they refuse the flag
    return os.open(path, flags, 0o600), False


def _fill(descriptor: int, size_bytes: int, direct: bool) -> bool:
    """Write the file once in full; False where the file system refuses direct transfers after all."""
    block = _random_block(min(_FILL_BLOCK_BYTES, size_bytes))
    offset = 0
    while offset < size_bytes:
        part = memoryview(block)[: min(len(block), size_bytes - offset)]
        try:
            offset += os.pwrite(descriptor, part, offset)
        except OSError as error:
            if not direct or error.errno not in _NO_DIRECT:
                raise
            direct = False
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    os.fsync(descriptor)
    return direct


def _random_block(size_bytes: int) -> mmap.mmap:
    block = mapping(size_bytes)
    block.write(os.urandom(size_bytes))
    return block


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
