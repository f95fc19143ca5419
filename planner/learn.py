"""Learn: a run's report is kept beside the profile, and the profile fitted to all runs that are kept there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwprofiles.errors import UserError
from hwprofiles.files import write_atomically
from hwprofiles.profile import HardwareProfile, load_profile
from planner.calibrate import Outcome, calibrate
from planner.kept_reports import keep, kept, reports_dir
from planner.report import RunReport, load_report
from planner.same_machine import check_report


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """A profile that was fitted again."""

    outcome: Outcome
    kept_at: Path
    """The report that was new."""
    left_out: tuple[str, ...]
    """Kept reports that do not count, each with the reason."""


def learn(path: Path, report: RunReport) -> Learned:
    """Keep the report, fit the profile to all that are kept, and replace the file; a UserError leaves it as it was."""
    profile = load_profile(str(path))
    check_report(profile, report)
    directory = reports_dir(path)
    kept_at = keep(report, directory)
    reports, left_out = _usable(profile, kept(directory))
    outcome = calibrate(profile, reports)
    write_atomically(path, outcome.profile.to_yaml())
    return Learned(outcome=outcome, kept_at=kept_at, left_out=tuple(left_out))


def _usable(profile: HardwareProfile, paths: list[Path]) -> tuple[list[RunReport], list[str]]:
    """Kept reports of this machine, and why others are none."""
    reports, left_out = [], []
    for path in paths:
        try:
            report = load_report(path)
            check_report(profile, report)
        except UserError as error:
            left_out.append(str(error))
        else:
            reports.append(report)
    return reports, left_out
