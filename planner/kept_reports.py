"""Kept reports: the runs that a profile has learned from, as files in a directory beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hwprofiles.errors import UserError
from hwprofiles.files import write_atomically
from planner.report import RunReport, load_report, report_json

MOST_REPORTS = 64
"""The newest so many of a directory are fitted."""


def reports_dir(profile: Path) -> Path:
    """hw.reports for hw.yaml."""
    return profile.with_suffix(".reports")


def keep(report: RunReport, directory: Path) -> Path:
    """Put a report into the directory, named by its time and its plan; the file."""
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot be created ({error.strerror}); move it out of the way"
        ) from None
    path = directory / f"{report.created.replace(':', '')}-{report.plan_digest}.json"
    write_atomically(path, report_json(report))
    return path


def kept(directory: Path) -> list[Path]:
    """The newest reports of a directory, the oldest of them first."""
    return sorted(directory.glob("*.json"))[-MOST_REPORTS:]


def load_reports(paths: list[Path]) -> Iterator[RunReport]:
    """The reports of files and of directories; a UserError for a directory without any."""
    for path in paths:
        files = kept(path) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path}: holds no report (*.json); name one, or a directory of some")
        yield from map(load_report, files)
