"""Messages between processes, and NUMA nodes as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprofiles.cli import main
from hwprofiles.errors import UserError
from hwprofiles.numa import numa_cpus, numa_node
from hwprofiles.probes.net import SIZES_BYTES, measure_net
from hwprofiles.profile import load_profile


def test_between_processes_of_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`measure --net` adds them to a profile, by size, and leaves all else in it as it was."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    path = tmp_path / "hw.yaml"
    before = load_profile("two-core")
    path.write_text(before.to_yaml())
    assert main(["measure", "--net", "--quick", "-o", str(path)]) == 0
    after = load_profile(str(path))
    assert [point.size_bytes for point in after.between_processes] == list(SIZES_BYTES)
    assert all(point.bytes_per_s.median > 0 for point in after.between_processes)
    assert after.between_hosts == before.between_hosts
    assert after.host == before.host


def test_between_two_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number of processes is refused in one line."""
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "3"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="the launcher started 3; start one on each host"):
        measure_net(0.1)


def test_numa_nodes(tmp_path: Path) -> None:
    """Positions among the processors that are allowed, node by node; devices that say -1 are on none."""
    for node, cpus in ((0, "0-3,8"), (1, "4-7"), (10, "9")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(f"{cpus}\n")
    assert numa_cpus([1, 2, 4, 5, 8, 9], tmp_path) == ((0, 1, 4), (2, 3), (5,))
    assert numa_cpus([1, 2], tmp_path / "none") == ()
    for name, node in (("0000:18:00.0", "1"), ("0000:19:00.0", "-1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "numa_node").write_text(f"{node}\n")
    assert numa_node(0, 0x18, 0, tmp_path) == 1
    assert numa_node(0, 0x19, 0, tmp_path) is None
    assert numa_node(0, 0x20, 0, tmp_path) is None
