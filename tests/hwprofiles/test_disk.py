"""The disk probe: figures, the file's removal, and refusals."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hwprofiles.budget import QUICK, Pace
from hwprofiles.errors import UserError
from hwprofiles.probes import disk
from hwprofiles.probes.disk import check_directory, measure_disk, scratch_file
from hwprofiles.units import MIB

SIZE = 4 * MIB


def test_disk_is_measured(tmp_path: Path) -> None:
    """A point for each block size and thread count both ways, and the directory is empty again."""
    budget = replace(QUICK, disk_file_bytes=SIZE, disk_block_bytes=(MIB,), disk_threads=(1, 2))
    with scratch_file(tmp_path, SIZE) as file:
        figures = measure_disk(tmp_path, file, budget, Pace(0.1, 5, lambda *_: None))
    assert [(point.block_bytes, point.threads) for point in figures.read] == [(MIB, 1), (MIB, 2)]
    assert len(figures.write) == 2
    assert figures.directory == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_others_are_measured_between_two_visits(tmp_path: Path) -> None:
    """Once, when all has been read and written a first time."""
    budget = replace(QUICK, disk_file_bytes=SIZE, disk_block_bytes=(MIB,), disk_threads=(1, 2))
    labels: list[str] = []
    pace = Pace(0.1, 5, lambda label, *_: labels.append(label))
    with scratch_file(tmp_path, SIZE) as file:
        measure_disk(tmp_path, file, budget, pace, between=lambda: labels.append("others"))
    kinds = [label.split(",")[0] for label in labels]
    assert kinds == [*["disk read"] * 2, *["disk write"] * 2, "disk read and write at once", "others"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_the_file_is_gone_whatever_happens(tmp_path: Path, failure: type[BaseException]) -> None:
    """Its name is gone while it is in use, so a killed process leaves nothing, and after an error too."""
    seen = []

    def use() -> None:
        with scratch_file(tmp_path, SIZE):
            seen.append(list(tmp_path.iterdir()))
            raise failure

    with pytest.raises(failure):
        use()
    assert [*seen, list(tmp_path.iterdir())] == [[], []]


def test_the_file_is_removed_late_where_it_cannot_be_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that refuses to remove an open file gets a second try at the end."""
    remove, calls = disk._remove, []

    def only_the_second_time(path: Path) -> None:
        calls.append(path)
        if len(calls) > 1:
            remove(path)

    monkeypatch.setattr(disk, "_remove", only_the_second_time)
    seen = []

    def use() -> None:
        with scratch_file(tmp_path, SIZE):
            seen.append(len(list(tmp_path.iterdir())))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert [*seen, len(list(tmp_path.iterdir()))] == [1, 0]


def test_too_little_space_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what is needed and what is free, and nothing was created."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * MIB))
    with (
        pytest.raises(UserError, match=r"needs 68\.0 MiB .* 10\.0 MiB are free.*--disk-dir"),
        scratch_file(tmp_path, SIZE),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC in the middle of writing names the directory and leaves nothing."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match="No space left"), scratch_file(tmp_path, SIZE):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_wrong_directory_is_refused(tmp_path: Path) -> None:
    """A directory that is not there, or is a file, is named."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(UserError, match=f"{path} is not a directory"):
            check_directory(path, SIZE)


def test_a_read_only_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that cannot be written is named with the remedy."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="cannot be written; choose another --disk-dir"):
        check_directory(tmp_path, SIZE)


@pytest.mark.parametrize("where", ["open", "write"])
def test_without_direct_transfers_the_page_cache_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A file system that refuses O_DIRECT, at once or on the first write, is measured buffered."""
    real_open, real_write = os.open, os.pwrite
    refusals = []

    def open_(path: str, flags: int, mode: int = 0o777) -> int:
        if where == "open" and flags & os.O_DIRECT:
            refusals.append(path)
            raise OSError(errno.EINVAL, "refused")
        return real_open(path, flags, mode)

    def write(descriptor: int, data: memoryview, offset: int) -> int:
        if where == "write" and not refusals:
            refusals.append(descriptor)
            raise OSError(errno.EINVAL, "refused")
        return real_write(descriptor, data, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwrite", write)
    budget = replace(QUICK, disk_file_bytes=SIZE, disk_block_bytes=(MIB,), disk_threads=(1,))
    with scratch_file(tmp_path, SIZE) as file:
        figures = measure_disk(tmp_path, file, budget, Pace(0.05, 3, lambda *_: None))
    assert not figures.direct
    assert refusals
