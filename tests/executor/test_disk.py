"""The disk store: round trips, refusals, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from executor import disk
from executor.arena import Arena
from executor.disk import DiskStore
from hwprofiles.errors import UserError
from hwprofiles.units import MIB

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    """A store with three threads."""
    made = DiskStore(tmp_path, threads=3)
    yield made
    made.close()


def host_bytes(nbytes: int) -> torch.Tensor:
    """Page-aligned host memory."""
    return Arena(nbytes, torch.device("cpu"), register=False).tensor


def random_bytes(nbytes: int) -> torch.Tensor:
    """Page-aligned random bytes."""
    data = host_bytes(nbytes)
    data.copy_(torch.randint(0, 256, (nbytes,), dtype=torch.uint8))
    return data


@pytest.mark.parametrize("nbytes", [4096, MIB, 5 * MIB + 4096, 33 * MIB])
def test_round_trip(store: DiskStore, nbytes: int) -> None:
    """Small transfers and those split over the threads come back bit by bit."""
    file = store.create("data", nbytes + 8192)
    data, back = random_bytes(nbytes), host_bytes(nbytes)
    file.write(4096, data)
    file.read(4096, back)
    assert torch.equal(data, back)
    edges = host_bytes(4096)
    for offset in (0, 4096 + nbytes):
        file.read(offset, edges)
        assert int(edges.sum()) == 0


def test_space_is_reserved_exactly(store: DiskStore) -> None:
    """A file takes its whole pages on the disk before a byte is written."""
    file = store.create("data", 10 * MIB + 1)
    assert file.nbytes == file.path.stat().st_size == 10 * MIB + 4096
    assert 10 * MIB <= store.allocated_bytes() <= 11 * MIB


def test_short_reads_continue(store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call that moves fewer bytes than asked is followed by another one."""
    file = store.create("data", 64 * 1024)
    data, back = random_bytes(64 * 1024), host_bytes(64 * 1024)
    file.write(0, data)
    whole = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return whole(descriptor, [buffers[0][:8192]], offset)

    monkeypatch.setattr(os, "preadv", short)
    file.read(0, back)
    assert torch.equal(data, back)


def test_unaligned_is_our_bug(store: DiskStore) -> None:
    """Past the page cache, offset, size and address must lie on pages."""
    file = store.create("data", 16384)
    if not file.direct:
        pytest.skip("the file system takes no O_DIRECT")
    for offset, tensor in ((1, host_bytes(4096)), (0, host_bytes(8192)[1:4097]), (0, host_bytes(4096)[:100])):
        with pytest.raises(AssertionError, match="page-aligned"):
            file.read(offset, tensor)
    with pytest.raises(AssertionError):
        file.read(16384, host_bytes(4096))


@pytest.mark.parametrize("refused", ["open", "preadv"])
def test_without_direct_io_any_alignment_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Where the file system refuses O_DIRECT, at once or when read, any offset and size will do."""
    opened = os.open

    def no_direct(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return opened(path, flags, mode)

    def no_read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(22, "Invalid argument")

    store = DiskStore(tmp_path, threads=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, refused, no_direct if refused == "open" else no_read)
        file = store.create("data", 8192)
    assert not file.direct
    data, back = random_bytes(100), host_bytes(100)
    file.write(33, data)
    file.read(33, back)
    assert torch.equal(data, back)
    store.close()


def test_missing_directory(tmp_path: Path) -> None:
    """A directory that is not there is named, with the remedy."""
    with pytest.raises(UserError, match=r"nowhere does not exist; create it"):
        DiskStore(tmp_path / "nowhere", threads=1)


def test_directory_that_cannot_be_written() -> None:
    """A file system without write access is one line."""
    with pytest.raises(UserError, match=r"/proc cannot be written .*--offload-dir"):
        DiskStore(Path("/proc"), threads=1)


def test_full_disk(store: DiskStore, tmp_path: Path) -> None:
    """A file larger than the disk is refused with both numbers, and leaves nothing."""
    nbytes = shutil.disk_usage(tmp_path).total + 2**40
    with pytest.raises(UserError, match=r"cannot take .*(iB|TiB) for data .*free\); free some space"):
        store.create("data", nbytes)
    assert list(store.directory.iterdir()) == []


def test_close_removes_everything_and_refuses_later_use(store: DiskStore, tmp_path: Path) -> None:
    """After close, twice if need be, the directory is as before and a late transfer is refused."""
    file = store.create("data", MIB)
    store.close()
    store.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="closed"):
        file.read(0, host_bytes(4096))


def test_close_waits_for_a_transfer_in_flight(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are closed only when no thread is inside a system call on them."""
    file = store.create("data", 32 * MIB)
    started, go_on = threading.Event(), threading.Event()
    whole = os.preadv
    failures: list[BaseException] = []

    def slow(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        started.set()
        go_on.wait()
        return whole(descriptor, buffers, offset)

    def read() -> None:
        try:
            file.read(0, host_bytes(32 * MIB))
        except RuntimeError as error:
            failures.append(error)

    monkeypatch.setattr(os, "preadv", slow)
    reader, closer = threading.Thread(target=read), threading.Thread(target=store.close)
    reader.start()
    started.wait()
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    assert file.path.exists()
    go_on.set()
    reader.join()
    closer.join()
    assert list(tmp_path.iterdir()) == []
    assert all("closed" in str(error) or "shutdown" in str(error) for error in failures)


def test_directories_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """What a killed run left is gone at the next start; a living run's directory stays."""
    script = (
        "import sys; from pathlib import Path; from executor.disk import DiskStore\n"
        f"store = DiskStore(Path({str(tmp_path)!r}), threads=1); store.create('data', 4096)\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (theirs,) = tmp_path.iterdir()
        ours = DiskStore(tmp_path, threads=1)
        assert theirs.exists()
        ours.close()
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == [theirs]
    ours = DiskStore(tmp_path, threads=1)
    assert list(tmp_path.iterdir()) == [ours.directory]
    ours.close()


def test_files_are_removed_when_the_process_ends_by_an_exception(tmp_path: Path) -> None:
    """An error, or Ctrl-C, that nobody catches still removes the files."""
    script = (
        "from pathlib import Path; from executor.disk import DiskStore\n"
        f"DiskStore(Path({str(tmp_path)!r}), threads=2).create('data', 4096); raise KeyboardInterrupt"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False)
    assert b"KeyboardInterrupt" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    """Only directories of our own naming are ever removed."""
    (tmp_path / "tierplan-notes").mkdir()
    (tmp_path / "tierplan-1-00000000").write_text("a file")
    disk.remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tierplan-1-00000000", "tierplan-notes"]
