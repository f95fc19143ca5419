"""`planner calibrate`: fits a profile's rates to the reports of runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from hwprofiles.files import write_atomically
from hwprofiles.profile import load_profile
from hwprofiles.terminal import make_console
from planner.calibrate import calibrate
from planner.commands.options import add_profile
from planner.kept_reports import load_reports
from planner.render_calibration import calibration_view


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The profile and the reports."""
    add_profile(parser)
    parser.add_argument(
        "reports",
        nargs="+",
        type=Path,
        metavar="REPORT",
        help="report.json of a run, or a directory of such files (the newest of it)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="HW.YAML", help="calibrated profile to write"
    )
    parser.add_argument("--force", action="store_true", help="take reports of another host too")


def run(arguments: argparse.Namespace) -> int:
    """Fit, write the profile, and show the errors before and after."""
    reports = list(load_reports(arguments.reports))
    outcome = calibrate(load_profile(arguments.hw), reports, force=arguments.force)
    write_atomically(arguments.output, outcome.profile.to_yaml())
    console = make_console()
    console.print(calibration_view(outcome))
    console.print(f"calibrated profile written to {arguments.output}")
    return 0
