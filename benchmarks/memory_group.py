"""A control group of this machine's own that holds a command to a memory limit, its pages of files included."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from hwprofiles.cgroups import group_directories
from hwprofiles.errors import UserError

_REMOVE_TRIES, _REMOVE_PAUSE_S = 20, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """How one version of control groups names what is needed of it."""

    limit: str
    peak: str
    anonymous: str
    """Key of memory.stat."""
    kills: str
    """File that counts processes killed for memory."""
    settings: Mapping[str, str]
    """Files to write beside the limit: no swapping. Those that a kernel lacks are left out."""


_V1 = Version(
    limit="memory.limit_in_bytes",
    peak="memory.max_usage_in_bytes",
    anonymous="total_rss",
    kills="memory.oom_control",
    settings=MappingProxyType({"memory.swappiness": "0"}),
)
_V2 = Version(
    limit="memory.max",
    peak="memory.peak",
    anonymous="anon",
    kills="memory.events",
    settings=MappingProxyType({"memory.swap.max": "0"}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGroup:
    """A group below the one this process is in, so that outer limits go on holding."""

    directory: Path
    version: Version

    def entering(self, command: Sequence[str]) -> list[str]:
        """The command as it runs in the group; what it starts is in too."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.directory / "cgroup.procs"), *command]

    def peak_bytes(self) -> int | None:
        """The most that was charged: anonymous memory, pages of files that it read first, and the kernel's part."""
        try:
            return int((self.directory / self.version.peak).read_text())
        except OSError:
            return None

    def anonymous_bytes(self) -> int:
        """Memory now that no file backs."""
        return _counts(self.directory / "memory.stat").get(self.version.anonymous, 0)

    def kills(self) -> int:
        """Processes of the group that the kernel killed for memory."""
        return _counts(self.directory / self.version.kills).get("oom_kill", 0)

    def remove(self) -> None:
        """Take the group away; the kernel refuses for a moment after its last process has ended."""
        for _ in range(_REMOVE_TRIES):
            try:
                self.directory.rmdir()
            except OSError:
                time.sleep(_REMOVE_PAUSE_S)
            else:
                return


def make_memory_group(limit_bytes: int) -> MemoryGroup:
    """A new group with this limit and no swap; a UserError where this process may not make one."""
    for parent in group_directories("memory"):
        version = _version_of(parent)
        if version is None:
            continue
        directory = parent / f"tierplan-benchmark-{os.getpid()}"
        try:
            directory.mkdir()
            (directory / version.limit).write_text(str(limit_bytes))
        except OSError as error:
            if directory.exists():
                directory.rmdir()
            raise UserError(
                f"{directory}: no control group can be made there ({error.strerror}); run as root, or leave out "
                "the case's host_limit and say that pages of files come on top"
            ) from None
        for name, value in version.settings.items():
            if (directory / name).exists():
                (directory / name).write_text(value)
        return MemoryGroup(directory=directory, version=version)
    raise UserError("this machine has no control group for memory; leave out the case's host_limit")


def _version_of(parent: Path) -> Version | None:
    """The version in whose hierarchy a child would get a memory limit."""
    if (parent / _V1.limit).exists():
        return _V1
    try:
        controllers = (parent / "cgroup.subtree_control").read_text().split()
    except OSError:
        return None
    return _V2 if "memory" in controllers else None


def _counts(path: Path) -> dict[str, int]:
    """A file of lines "name number"."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {name: int(number) for name, number in (line.split() for line in lines)}
