"""Setting: where, when and with what the runs of a result were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.facts import current_commit, machine_facts
from benchmarks.json_result import load_json_result, write_json_result
from hwprofiles.profile import HardwareProfile

_FILE = "setting.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a result says of its runs beside their figures."""

    command: str
    commit: str
    created: str
    machine: Mapping[str, object]
    profile: Mapping[str, object]
    """Name, digest and date of the profile that predicted them, or that they are held against; empty without one."""

    def heading(self) -> tuple[str, str, str, str]:
        """A section's first lines, as Markdown."""
        return (
            f"## {self.profile['name']}, {self.created[:16].replace('T', ' ')}",
            "",
            f"{self.machine['platform']}, torch {self.machine['torch']}; commit {self.commit[:12]};",
            f"profile {self.profile['name']} of {self.profile['created']}.",
        )


def keep_setting(directory: Path, setting: Setting) -> None:
    """Beside the reports of runs, which may be summed up on another machine."""
    write_json_result(setting, directory / _FILE)


def kept_setting(directory: Path) -> Setting:
    """Of the latest runs whose reports are in a directory."""
    return load_json_result(directory / _FILE, Setting)


def setting_of(profile: HardwareProfile | None, command: str) -> Setting:
    """This machine and this working tree, now."""
    facts = {"name": profile.name, "digest": profile.digest(), "created": profile.created} if profile else {}
    return Setting(
        command=command,
        commit=current_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine_facts(),
        profile=facts,
    )
