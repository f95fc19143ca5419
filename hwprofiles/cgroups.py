"""Limits that control groups (versions 1 and 2) put on this process: memory and processor time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_LIMIT_NAMES = ("memory.max", "memory.high", "memory.limit_in_bytes")
_UNLIMITED_BYTES = 2**62
"""Version 1 writes "no limit" as the largest multiple of a page below 2**63."""


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """The tightest memory limit from this process's group up to the top; None where there is none.

    `root` stands for the file system's root, so that a test can bring its own.
    """
    limits = [
        limit
        for directory in group_directories("memory", root)
        for name in _LIMIT_NAMES
        if (limit := _read_number(directory / name)) is not None and 0 < limit < _UNLIMITED_BYTES
    ]
    return min(limits, default=None)


def memory_headroom_bytes(root: Path = Path("/")) -> int | None:
    """What this process's group and those above it would still give; None where none has a limit.

    Pages of files count as free: the kernel takes them back before it refuses memory.
    """
    headrooms = []
    for directory in group_directories("memory", root):
        limits = [_read_number(directory / name) for name in _LIMIT_NAMES]
        used = [_read_number(directory / name) for name in ("memory.current", "memory.usage_in_bytes")]
        for limit in limits:
            if limit is not None and 0 < limit < _UNLIMITED_BYTES:
                held = max((number for number in used if number is not None), default=0)
                headrooms.append(max(0, limit - max(0, held - _file_bytes(directory))))
    return min(headrooms, default=None)


def _file_bytes(directory: Path) -> int:
    """Bytes of a group and those below it that are pages of files."""
    counts = dict(line.split() for line in _read(directory / "memory.stat").splitlines())
    prefix = "total_" if "total_active_file" in counts else ""
    return sum(int(counts.get(f"{prefix}{name}_file", 0)) for name in ("active", "inactive"))


def cpu_quota(root: Path = Path("/")) -> int | None:
    """Processors' worth of time this process is granted, rounded up; None where there is no quota."""
    quotas = [
        quota for directory in group_directories("cpu", root) if (quota := _quota_of(directory)) is not None
    ]
    return math.ceil(min(quotas)) if quotas else None


def _quota_of(directory: Path) -> float | None:
    words = _read(directory / "cpu.max").split()
    if len(words) == 2 and words[0].isdecimal():
        return int(words[0]) / int(words[1])
    quota, period = (
        _read_number(directory / "cpu.cfs_quota_us"),
        _read_number(directory / "cpu.cfs_period_us"),
    )
    return quota / period if quota is not None and quota > 0 and period else None


def group_directories(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """This process's group and its ancestors, innermost first, in every hierarchy with `controller`.

    The hierarchy of version 2 is always among them: whether it has the controller is written in its files.
    """
    mounts = tuple(_mounts(root))
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for kind, options, mount_root, mount_point in mounts:
            if controllers == "":
                is_ours = kind == "cgroup2"
            else:
                is_ours = kind == "cgroup" and controller in controllers.split(",") and controller in options
            if is_ours:
                yield from _upwards(root / mount_point.lstrip("/"), _below(path, mount_root))


def _mounts(root: Path) -> Iterator[tuple[str, list[str], str, str]]:
    """Kind, options, root and mount point of each mounted control group hierarchy."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        fields, (kind, *rest) = head.split(), tail.split()
        if kind in ("cgroup", "cgroup2"):
            yield kind, rest[-1].split(","), fields[3], fields[4]


def _below(path: str, mount_root: str) -> PurePosixPath:
    """The group's path as seen from the mount, which in a container may show only part of the tree."""
    full = PurePosixPath(path)
    return full.relative_to(mount_root) if full.is_relative_to(mount_root) else full.relative_to("/")


def _upwards(mount: Path, path: PurePosixPath) -> Iterator[Path]:
    if ".." not in path.parts:  # a group outside our namespace; only the mount itself can be read
        for part in (path, *path.parents):
            if part != PurePosixPath("."):
                yield mount / part
    yield mount


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _read_number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdecimal() else None
