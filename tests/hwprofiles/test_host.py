"""Control group limits from a fake tree, and the fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles import host
from hwprofiles.cgroups import cpu_quota, memory_limit_bytes
from hwprofiles.profile import load_profile

V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V1_CPU_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V2_MOUNT = "41 31 0:38 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"
UNLIMITED_V1 = "9223372036854771712\n"


def tree(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """A file system root with these control groups."""
    texts = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}
    texts |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_v2_takes_the_tightest_limit_up_the_hierarchy(tmp_path: Path) -> None:
    """A parent's limit binds although the process's own group has none."""
    files = {"a/memory.max": "5000\n", "a/b/memory.max": "max\n", "a/b/c/memory.max": "9000\n"}
    assert memory_limit_bytes(tree(tmp_path, "0::/a/b/c\n", V2_MOUNT, files)) == 5000


def test_v2_counts_the_throttling_limit(tmp_path: Path) -> None:
    """Beyond memory.high the kernel throttles, so no plan goes there."""
    files = {"a/memory.max": "5000\n", "a/memory.high": "4000\n"}
    assert memory_limit_bytes(tree(tmp_path, "0::/a\n", V2_MOUNT, files)) == 4000


def test_v1_reads_the_memory_hierarchy_only(tmp_path: Path) -> None:
    """Version 1: nested groups, "no limit" is a huge number, other controllers do not count."""
    files = {
        "memory/memory.limit_in_bytes": UNLIMITED_V1,
        "memory/a/memory.limit_in_bytes": "7000\n",
        "memory/a/b/memory.limit_in_bytes": UNLIMITED_V1,
        "cpu/other/memory.limit_in_bytes": "1\n",
    }
    cgroup = "5:cpu,cpuacct:/other\n4:memory:/a/b\n0::/\n"
    assert memory_limit_bytes(tree(tmp_path, cgroup, V1_MOUNT + V1_CPU_MOUNT, files)) == 7000


def test_a_container_sees_its_part_of_the_tree(tmp_path: Path) -> None:
    """The mount's root is the container's group, which /proc/self/cgroup names from the host's view."""
    mount = "41 31 0:38 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    files = {"memory.max": "6000\n", "job/memory.max": "max\n"}
    assert memory_limit_bytes(tree(tmp_path, "0::/docker/abc/job\n", mount, files)) == 6000


def test_a_group_outside_the_namespace_falls_back_to_the_mount(tmp_path: Path) -> None:
    """A path through `..` cannot be followed; the mount's own limit still counts."""
    assert memory_limit_bytes(tree(tmp_path, "0::/../x\n", V2_MOUNT, {"memory.max": "6000\n"})) == 6000


@pytest.mark.parametrize("limit", ["max\n", UNLIMITED_V1, "", "garbage\n"])
def test_no_limit_is_none(tmp_path: Path, limit: str) -> None:
    """A group without a limit, or without a readable one, does not limit."""
    files = {"a/memory.max": limit, "memory/a/memory.limit_in_bytes": limit}
    assert memory_limit_bytes(tree(tmp_path, "4:memory:/a\n0::/a\n", V1_MOUNT + V2_MOUNT, files)) is None


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    """A system without them has no limit and no quota."""
    assert memory_limit_bytes(tmp_path) is None
    assert cpu_quota(tmp_path) is None


def test_cpu_quota_is_rounded_up(tmp_path: Path) -> None:
    """A version 2 quota of 2.5 processors lets 3 threads be useful, a version 1 quota of 1.5 lets 2."""
    v2 = tree(
        tmp_path / "2", "0::/a\n", V2_MOUNT, {"a/cpu.max": "250000 100000\n", "cpu.max": "max 100000\n"}
    )
    assert cpu_quota(v2) == 3
    files = {"cpu/a/cpu.cfs_quota_us": "150000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}
    files |= {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert cpu_quota(tree(tmp_path / "1", "3:cpu,cpuacct:/a\n", V1_CPU_MOUNT, files)) == 2


def test_memory_limits_bind_by_the_smallest() -> None:
    """A cap is listed beside what the system says."""
    limits = host.memory_limits(1000)
    assert limits["cap"] == min(limits.values()) == 1000
    assert "cap" not in host.memory_limits()
    assert limits["mem_total"] > 0


def test_processor_is_plausible() -> None:
    """At least one core, and no more physical cores than logical ones."""
    cpu = host.processor()
    assert 1 <= cpu.physical_cores <= cpu.logical_cores
    assert cpu.model
    assert cpu.sockets >= 1
    assert cpu.numa_nodes >= 1


def test_a_published_profile_is_never_this_host() -> None:
    """The warning says where its figures come from and how to measure."""
    warning = host.mismatch(load_profile("t4-host"))
    assert warning is not None
    assert "published figures" in warning
    assert "hwprofile measure" in warning


def test_mismatch_compares_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning on the host that was measured; one line on a host with another GPU."""
    here = replace(load_profile("t4-host"), method="measured", fingerprint=host.current_fingerprint())
    assert host.mismatch(here) is None
    monkeypatch.setattr(host, "gpu_names", lambda: ("Some Other GPU",))
    warning = host.mismatch(here)
    assert warning is not None
    assert "another host" in warning
    assert "\n" not in warning


def test_gpu_names_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name a line; a tool that fails names none."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200'\necho 'NVIDIA H200'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert host.gpu_names() == ("NVIDIA H200", "NVIDIA H200")
    tool.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert "no driver" not in host.gpu_names()
