"""NUMA: which processors are near which memory, and which node a GPU hangs on, as Linux says."""

from __future__ import annotations

import re
from pathlib import Path

NODES = Path("/sys/devices/system/node")
PCI = Path("/sys/bus/pci/devices")


def numa_cpus(allowed: list[int], nodes: Path = NODES) -> tuple[tuple[int, ...], ...]:
    """For each node the positions of its processors among those allowed, in rising order; empty where unknown."""
    lists = sorted(nodes.glob("node[0-9]*/cpulist"), key=lambda path: int(path.parent.name[4:]))
    position = {cpu: index for index, cpu in enumerate(allowed)}
    return tuple(tuple(position[cpu] for cpu in _cpus(path.read_text()) if cpu in position) for path in lists)


def numa_node(domain: int, bus: int, device: int, devices: Path = PCI) -> int | None:
    """Of the device with this PCI address; None where the system does not say, which it writes as -1."""
    path = devices / f"{domain:04x}:{bus:02x}:{device:02x}.0" / "numa_node"
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdecimal() else None


def _cpus(text: str) -> list[int]:
    """A list as the kernel writes it, such as 0-3,8."""
    found: list[int] = []
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found += range(int(first), int(last or first) + 1)
    return found
