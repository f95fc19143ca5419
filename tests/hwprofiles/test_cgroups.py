"""Control groups: what is still free below their limits, in both versions."""

from __future__ import annotations

from pathlib import Path

from hwprofiles.cgroups import memory_headroom_bytes

MIB = 2**20


def write(root: Path, files: dict[str, str]) -> None:
    """A file system of these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_headroom_of_version_2(tmp_path: Path) -> None:
    """The tightest group up to the top counts; pages of files are free to take."""
    mount = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/job/step\n",
            "proc/self/mountinfo": mount,
            "sys/fs/cgroup/job/memory.max": f"{1000 * MIB}\n",
            "sys/fs/cgroup/job/memory.current": f"{700 * MIB}\n",
            "sys/fs/cgroup/job/memory.stat": f"anon 1\nactive_file {100 * MIB}\ninactive_file {200 * MIB}\n",
            "sys/fs/cgroup/job/step/memory.max": "max\n",
            "sys/fs/cgroup/job/step/memory.high": f"{800 * MIB}\n",
            "sys/fs/cgroup/job/step/memory.current": f"{150 * MIB}\n",
        },
    )
    assert memory_headroom_bytes(tmp_path) == 600 * MIB


def test_headroom_of_version_1(tmp_path: Path) -> None:
    """Version 1 counts a group with those below it."""
    mount = "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    group = "sys/fs/cgroup/memory/docker/abc"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n",
            "proc/self/mountinfo": mount,
            f"{group}/memory.limit_in_bytes": f"{500 * MIB}\n",
            f"{group}/memory.usage_in_bytes": f"{400 * MIB}\n",
            f"{group}/memory.stat": f"total_active_file {30 * MIB}\ntotal_inactive_file {20 * MIB}\n",
        },
    )
    assert memory_headroom_bytes(tmp_path) == 150 * MIB


def test_no_limit(tmp_path: Path) -> None:
    """Without groups, or with "no limit" in version 1's spelling, there is nothing to stay below."""
    assert memory_headroom_bytes(tmp_path) is None
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n",
            "proc/self/mountinfo": "31 23 0:27 / /cg rw - cgroup cgroup rw,memory\n",
            "cg/memory.limit_in_bytes": f"{2**63 - 4096}\n",
            "cg/memory.usage_in_bytes": f"{MIB}\n",
        },
    )
    assert memory_headroom_bytes(tmp_path) is None


def test_over_the_limit_is_zero(tmp_path: Path) -> None:
    """A group beyond its soft limit gives nothing more."""
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n",
            "cg/memory.high": f"{100 * MIB}\n",
            "cg/memory.current": f"{150 * MIB}\n",
        },
    )
    assert memory_headroom_bytes(tmp_path) == 0
