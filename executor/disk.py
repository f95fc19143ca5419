"""DiskStore: files of the offload directory, read and written past the page cache by a pool of threads."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import mmap
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from hwprofiles.errors import UserError
from hwprofiles.units import MIB, format_bytes
from planner.layout import PAGE_BYTES, align

_MIN_CHUNK_BYTES = MIB
_MAX_CHUNK_BYTES = 8 * MIB
_OURS = re.compile(r"tierplan-\d+-[0-9a-f]{8}")

_Move = Callable[[int, list[memoryview], int], int]
"""os.preadv or os.pwritev."""


class DiskStore:
    """A private sub-directory of the offload directory, and the threads that read and write its files.

    The sub-directory is locked while its process lives; those that nobody locks any more were left by killed
    processes and are removed at the start. Raises UserError where the directory is missing or read-only.
    """

    def __init__(self, directory: Path, *, threads: int) -> None:
        self._owner = os.getpid()
        self._closed = self._removed = False
        self._in_flight = 0
        self._idle = threading.Condition()
        self._files: list[DiskFile] = []
        if not directory.is_dir():
            raise UserError(f"offload directory {directory} does not exist; create it or choose another")
        try:
            remove_stale(directory)
            self.directory, self._lock = _private_directory(directory)
        except OSError as error:
            raise UserError(
                f"offload directory {directory} cannot be written ({error.strerror}); "
                "choose another --offload-dir"
            ) from None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="disk")
        self._num_threads = threads
        atexit.register(self.close)

    def create(self, name: str, nbytes: int) -> DiskFile:
        """A new file of whole pages, its space reserved; its bytes are zeros. A full disk is a UserError."""
        path, size = self.directory / name, align(nbytes)
        free = shutil.disk_usage(self.directory).free
        try:
            if size > free:  # asking the file system would fill the disk for a moment
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _reserve(path, size)
            descriptor = _open_direct(path, size)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UserError(
                f"offload directory {self.directory.parent} cannot take {format_bytes(size)} for {name} "
                f"({error.strerror}, {format_bytes(free)} free); free some space, "
                "choose another --offload-dir, or plan with a smaller --disk"
            ) from None
        file = DiskFile(self, path, descriptor, size)
        self._files.append(file)
        return file

    def close(self) -> None:
        """Stop what is queued, wait for what is being read or written, remove all files; idempotent."""
        if self._removed or os.getpid() != self._owner:
            return
        with self._idle:
            self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._idle:
            self._idle.wait_for(lambda: self._in_flight == 0)
        while self._files:
            os.close(self._files.pop().descriptor)
        shutil.rmtree(self.directory, ignore_errors=True)
        self._removed = True
        os.close(self._lock)
        atexit.unregister(self.close)

    def allocated_bytes(self) -> int:
        """What the file system counts for all files."""
        return sum(os.fstat(file.descriptor).st_blocks * 512 for file in self._files)

    def move(self, call: _Move, file: DiskFile, offset: int, tensor: torch.Tensor) -> None:
        """Read or write a range in chunks, one of them on the calling thread; returns when all are done."""
        whole = tensor.view(-1).numpy().data
        nbytes = len(whole)
        chunk = min(max(align(-(-nbytes // self._num_threads)), _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES)
        futures: list[Future[None]] = []
        with self._flying():
            try:
                for start in range(chunk, nbytes, chunk):
                    piece = whole[start : start + chunk]
                    futures.append(self._pool.submit(_move_chunk, call, file, offset + start, piece))
                _move_chunk(call, file, offset, whole[:chunk])
                for future in futures:
                    future.result()
            except CancelledError:
                raise RuntimeError(f"{file.path.name}: the disk store was closed during a transfer") from None
            finally:
                _settle(futures)

    @contextlib.contextmanager
    def _flying(self) -> Iterator[None]:
        """Holds back the closing of files, whose numbers the system would give to others."""
        with self._idle:
            if self._closed:
                raise RuntimeError("the disk store is closed")
            self._in_flight += 1
        try:
            yield
        finally:
            with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()


class DiskFile:
    """One file of a DiskStore; made by DiskStore.create."""

    def __init__(self, store: DiskStore, path: Path, descriptor: int, nbytes: int) -> None:
        self._store = store
        self.path, self.descriptor, self.nbytes = path, descriptor, nbytes
        self.direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)

    def read(self, offset: int, into: torch.Tensor) -> None:
        """Fill `into`, a contiguous uint8 host tensor, from `offset`; all of them page-aligned."""
        self._check(offset, into)
        self._store.move(os.preadv, self, offset, into)

    def write(self, offset: int, source: torch.Tensor) -> None:
        """Write a contiguous uint8 host tensor at `offset`; aligned as for read."""
        self._check(offset, source)
        self._store.move(os.pwritev, self, offset, source)

    def _check(self, offset: int, tensor: torch.Tensor) -> None:
        assert tensor.dtype == torch.uint8, tensor.dtype
        assert tensor.is_contiguous()
        assert offset + tensor.numel() <= self.nbytes, (offset, tensor.numel(), self.nbytes)
        if self.direct:
            for aligned in (offset, tensor.numel(), tensor.data_ptr()):
                assert aligned % PAGE_BYTES == 0, f"{self.path.name}: {aligned} is not page-aligned"


def _move_chunk(call: _Move, file: DiskFile, offset: int, piece: memoryview) -> None:
    """Read or write one chunk; a short count continues, an error names the file."""
    done = 0
    while done < len(piece):
        try:
            count = call(file.descriptor, [piece[done:]], offset + done)
        except OSError as error:
            raise UserError(
                f"offload file {file.path} failed at byte {offset + done} ({error.strerror}); "
                "check the disk or choose another --offload-dir"
            ) from None
        if count == 0:
            raise UserError(f"offload file {file.path} was cut to {offset + done} bytes; leave it alone")
        done += count


def _settle(futures: list[Future[None]]) -> None:
    """Let no thread touch the caller's memory any more."""
    for future in futures:
        future.cancel()
    wait(futures)


def _private_directory(parent: Path) -> tuple[Path, int]:
    """A new sub-directory and the descriptor that holds its lock; locked before it bears its name."""
    hidden = Path(tempfile.mkdtemp(prefix=".tierplan-", dir=parent))
    lock = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a file system without locks; then nothing is taken for stale either
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path = parent / f"tierplan-{os.getpid()}-{secrets.token_hex(4)}"
    hidden.rename(path)
    return path, lock


def remove_stale(parent: Path) -> None:
    """Remove what killed processes left in an offload directory."""
    for path in parent.iterdir():
        if _OURS.fullmatch(path.name) and path.is_dir() and _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    """Whether the process that made a sub-directory is gone: the lock it held is free."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _reserve(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if size:
            os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def _open_direct(path: Path, size: int) -> int:
    """Open past the page cache where the file system takes it, else through it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        try:
            os.preadv(descriptor, [mmap.mmap(-1, min(PAGE_BYTES, size))] if size else [], 0)
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # some refuse when opened, some when read
            raise
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    return descriptor
