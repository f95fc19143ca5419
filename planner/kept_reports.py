"""Kept reports: the runs that a profile has learned from, as files in a directory beside it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

from hwprofiles.errors import UserError
from hwprofiles.files import check_writable, write_atomically
from hwprofiles.profile import load_profile
from planner.plan import Plan
from planner.report import RunReport, load_report, report_json
from planner.same_machine import check_kind

MOST_REPORTS = 64
"""The newest so many of a directory are fitted."""


def reports_dir(profile: Path) -> Path:
    """hw.reports for hw.yaml."""
    return profile.with_suffix(".reports")


def check_can_learn(path: Path, plan: Plan, fingerprint: str) -> None:
    """A UserError now for what would be one after hours of work; `fingerprint` is of the host that runs the plan."""
    if not path.is_file():
        raise UserError(
            f"{path}: is not a file; calibrate a profile of your own, which hwprofile measure -o hw.yaml writes"
        )
    profile = load_profile(str(path))
    check_kind(profile, plan.hardware, "the plan")
    if profile.fingerprint != fingerprint:
        raise UserError(
            f"{path}: describes a host with fingerprint {profile.fingerprint or 'unknown'}, this one has "
            f"{fingerprint}; measure it with hwprofile measure, or calibrate by hand: planner calibrate --force"
        )
    check_writable(path)
    make_dir(reports_dir(path))


def make_dir(directory: Path) -> None:
    """Create it unless it is there; a UserError where no report can be put into it."""
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot be created ({error.strerror}); move it out of the way"
        ) from None
    check_writable(directory / "report.json")


def keep(report: RunReport, directory: Path) -> Path:
    """Put a report into the directory, named by its time and its plan; its own file, also of two in a second."""
    make_dir(directory)
    name = f"{report.created.replace(':', '')}-{report.plan_digest}"
    names = chain((name,), (f"{name}-{n}" for n in count(2)))
    path = next(path for path in (directory / f"{name}.json" for name in names) if not path.exists())
    write_atomically(path, report_json(report))
    return path


def kept(directory: Path) -> list[Path]:
    """The newest reports of a directory, the oldest of them first."""
    return sorted(directory.glob("*.json"), key=lambda path: path.stem)[-MOST_REPORTS:]


def load_reports(paths: list[Path]) -> Iterator[RunReport]:
    """The reports of files and of directories; a UserError for a directory without any."""
    for path in paths:
        files = kept(path) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path}: holds no report (*.json); name one, or a directory of some")
        yield from map(load_report, files)
