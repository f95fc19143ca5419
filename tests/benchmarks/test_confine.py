"""Commands run to their end, or to a limit, and what is said of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks import memory_group
from benchmarks.confine import Ran, run_confined
from benchmarks.memory_group import make_memory_group
from benchmarks.page_cache import forget_files
from hwprofiles.errors import UserError
from hwprofiles.units import MIB

HOLD = "import sys, time; held = bytearray(b'x' * int(sys.argv[1])); print('held'); time.sleep(0.5)"


def run(
    tmp_path: Path, *command: str, limit_bytes: int | None = None, timeout_s: float = 60, **environment: str
) -> Ran:
    return run_confined(
        command,
        limit_bytes=limit_bytes,
        timeout_s=timeout_s,
        environment=environment,
        log=tmp_path / "log",
    )


def test_a_command_s_end_and_memory_are_told(tmp_path: Path) -> None:
    """What it printed, its exit status and the memory it held."""
    ran = run(tmp_path, sys.executable, "-c", f"{HOLD}; sys.exit(3)", str(64 * MIB))
    assert ran.exit_status == 3
    assert ran.log.strip() == "held"
    assert 64 * MIB < ran.peak_resident_bytes < 192 * MIB
    assert (ran.limit_bytes, ran.peak_charged_bytes, ran.is_timed_out) == (None, None, False)


def test_the_environment_is_added_to(tmp_path: Path) -> None:
    """What is given comes on top of what is there."""
    ran = run(tmp_path, "sh", "-c", "echo $COLOUR $PATH", COLOUR="blue")
    assert ran.log.strip() == f"blue {os.environ['PATH']}"


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """It is killed at its deadline, and said to be."""
    ran = run(tmp_path, "sleep", "60", timeout_s=0.3)
    assert ran.is_timed_out
    assert ran.exit_status == -9
    assert ran.wall_s < 30


def test_a_stop_is_noticed(tmp_path: Path) -> None:
    """A run that somebody stopped for a while says so."""
    ran = run(tmp_path, "sh", "-c", "(sleep 1; kill -CONT $$) & kill -STOP $$; wait")
    assert ran.exit_status == 0
    assert ran.stopped_s > 0.2


def test_a_group_holds_a_command_to_its_limit(tmp_path: Path) -> None:
    """More than the limit is refused by the kernel; less is not, and is counted."""
    try:
        make_memory_group(64 * MIB).remove()
    except UserError as error:
        pytest.skip(str(error))
    within = run(tmp_path, sys.executable, "-c", HOLD, str(24 * MIB), limit_bytes=64 * MIB)
    assert within.exit_status == 0
    assert within.peak_charged_bytes is not None
    assert 24 * MIB < within.peak_charged_bytes <= 64 * MIB
    beyond = run(tmp_path, sys.executable, "-c", HOLD, str(256 * MIB), limit_bytes=64 * MIB)
    assert (beyond.exit_status, beyond.is_out_of_memory) == (-9, True)


@pytest.mark.parametrize(
    ("limit", "files"),
    [
        ("memory.limit_in_bytes", {"memory.limit_in_bytes": "9223372036854771712"}),
        ("memory.max", {"cgroup.subtree_control": "cpu memory"}),
    ],
    ids=["version 1", "version 2"],
)
def test_a_group_is_made_in_either_version(
    limit: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the process's own group, with the limit under that version's name."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory_group, "group_directories", lambda _: [tmp_path])
    group = make_memory_group(1000)
    assert group.directory.parent == tmp_path
    assert (group.directory / limit).read_text() == "1000"
    (group.directory / "memory.stat").write_text("anon 7\ntotal_rss 7\n")
    assert group.anonymous_bytes() == 7
    assert group.peak_bytes() is None


def test_no_group_for_memory_is_a_user_s_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the remedy."""
    monkeypatch.setattr(memory_group, "group_directories", lambda _: [tmp_path])
    with pytest.raises(UserError, match="host_limit"):
        make_memory_group(1000)


def test_forgotten_files_are_read_from_the_disk(tmp_path: Path) -> None:
    """The operating system counts blocks read after the page cache was told to forget, and none before."""
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "file"
    path.write_bytes(os.urandom(8 * MIB))
    forget_files(tmp_path)
    cold = run(tmp_path, "cat", str(path), timeout_s=60)
    if cold.disk_read_bytes == 0:
        pytest.skip("this file system does not count what is read")
    warm = run(tmp_path, "cat", str(path), timeout_s=60)
    assert cold.disk_read_bytes >= 8 * MIB
    assert warm.disk_read_bytes < MIB
