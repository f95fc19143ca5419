"""The results file: appended and fsynced block by block, so that a killed run can be finished later."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from executor.result_line import LINE_HEAD, to_line
from executor.sampling import Completion
from hwprofiles.errors import UserError
from planner.prompts import Request


class ResultFile:
    """A line for each request that is done.

    Opening locks the file, so that no second run writes it, and cuts off a line that a kill left torn. A file
    that is not this job's is refused and left as it is.
    """

    def __init__(self, path: Path, requests: Sequence[Request], *, model: str) -> None:
        self._path = path
        self._requests = tuple(requests)
        self._model = model
        self._fd = _open_locked(path)
        try:
            self._done, self._good_bytes = _scan(
                self._fd, path, frozenset(request.custom_id for request in requests)
            )
            self._cut_to_good()
        except OSError as error:
            self.close()
            raise UserError(
                f"{path}: cannot be resumed ({error.strerror}); choose another --output"
            ) from None
        except UserError:
            self.close()
            raise

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file and its lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def pending(self) -> list[Request]:
        """The requests that have no line yet, in the order of the job."""
        return [request for request in self._requests if request.custom_id not in self._done]

    def append(self, completions: Sequence[Completion]) -> None:
        """Write and fsync a line for each; if the disk refuses, a UserError, the lines before it intact."""
        new_ids = [completion.request.custom_id for completion in completions]
        assert len({*new_ids} - self._done) == len(new_ids), "a request was completed twice"
        data = b"".join(to_line(completion, model=self._model) for completion in completions)
        try:
            _write_all(self._fd, data)
            os.fsync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):  # should this fail too, the next run cuts the torn line
                self._cut_to_good()
            raise UserError(
                f"{self._path}: {error.strerror} after {len(self._done)} of {len(self._requests)} results, "
                "which are kept; make room and run the same command again to finish the rest"
            ) from None
        self._good_bytes += len(data)
        self._done.update(new_ids)

    def _cut_to_good(self) -> None:
        os.ftruncate(self._fd, self._good_bytes)
        os.lseek(self._fd, self._good_bytes, os.SEEK_SET)


def _open_locked(path: Path) -> int:
    """A descriptor of `path` for reading and writing, created if need be, that no other run holds."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        remedy = "create the directory or " if isinstance(error, FileNotFoundError) else ""
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); {remedy}choose another --output"
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UserError(f"{path}: is not a regular file; choose another --output")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _sync_directory(path.parent)
    except BlockingIOError:
        os.close(fd)
        raise UserError(
            f"{path}: another run is writing it; wait for it or choose another --output"
        ) from None
    except OSError as error:
        os.close(fd)
        raise UserError(
            f"{path}: cannot be locked ({error.strerror}); choose an --output on a local disk"
        ) from None
    except UserError:
        os.close(fd)
        raise
    return fd


def _sync_directory(directory: Path) -> None:
    """Makes a file created a moment ago outlive a power failure, where the file system can promise that."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _scan(fd: int, path: Path, known_ids: frozenset[str]) -> tuple[set[str], int]:
    """The custom_ids that have a line and the length in bytes up to which the file is whole."""
    done: set[str] = set()
    good_bytes, size_bytes = 0, os.fstat(fd).st_size
    with open(fd, "rb", closefd=False) as lines:
        for number, line in enumerate(lines, start=1):
            custom_id = _custom_id(line)
            if custom_id is None:
                if good_bytes + len(line) == size_bytes and _is_torn(line):
                    break
                raise UserError(f"{path}:{number}: not a result line; repair it or choose another --output")
            if custom_id not in known_ids:
                raise UserError(
                    f"{path}:{number}: custom_id {custom_id!r} is not in this job; choose another --output"
                )
            if custom_id in done:
                raise UserError(
                    f"{path}:{number}: custom_id {custom_id!r} has a line already; remove one or choose "
                    "another --output"
                )
            done.add(custom_id)
            good_bytes += len(line)
    return done, good_bytes


def _custom_id(line: bytes) -> str | None:
    """The custom_id of a whole result line; None for anything else, a request line included."""
    if not line.endswith(b"\n"):
        return None
    try:
        data = json.loads(line)
    except ValueError:
        return None
    if not isinstance(data, dict) or "response" not in data:
        return None
    custom_id = data.get("custom_id")
    return custom_id if isinstance(custom_id, str) else None


def _is_torn(line: bytes) -> bool:
    """Whether a kill or a power failure could have left this of one of our lines; other text is never cut."""
    written = line.rstrip(b"\0\n")
    return written.startswith(LINE_HEAD) or LINE_HEAD.startswith(written)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
