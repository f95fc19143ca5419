"""Predicted against measured: runs plans, good ones and bad ones, and says how far each prediction was off.

    python -m benchmarks.accuracy run benchmarks/accuracy-two-core.yaml --hw hw.yaml --reports reports
    python -m benchmarks.accuracy sum benchmarks/accuracy-two-core.yaml --hw hw.yaml --reports reports -o result.json
    python -m benchmarks.accuracy page benchmarks/results/accuracy-*.json -o docs/accuracy.md

`run` keeps a report for each case and leaves out the cases that have one, so that it can be stopped and gone on with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.accuracy_page import page, section
from benchmarks.accuracy_result import load_accuracy, summed_up, write_accuracy
from benchmarks.accuracy_runs import AccuracyCase, load_accuracy_cases, report_path, run_case
from hwprofiles.errors import UserError, run_cli
from hwprofiles.files import write_atomically
from hwprofiles.profile import load_profile
from planner.report import load_report


def main() -> int:
    """Run, sum up or write the page."""
    arguments = _parser().parse_args()
    status: int = arguments.function(arguments)
    return status


def run(arguments: argparse.Namespace) -> int:
    """Run what has no report yet; 1 if a case failed."""
    arguments.reports.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, case in _cases(arguments).items():
        path = report_path(arguments.reports, name)
        if path.exists():
            continue
        try:
            report = run_case(case, arguments.hw, arguments.offload_dir, path)
        except UserError as error:
            failed += 1
            print(f"{name}: {error}", flush=True)
            continue
        phases = (f"{p.phase} {p.measured_s:.2f} s ({p.predicted_s:.2f})" for p in report.phases)
        print(f"{name}: {', '.join(phases)}", flush=True)
    return 1 if failed else 0


def sum_up(arguments: argparse.Namespace) -> int:
    """Compute errors from the reports, and from a calibration on a third of them."""
    cases = _cases(arguments)
    reports = {name: load_report(report_path(arguments.reports, name)) for name in cases}
    result = summed_up(
        cases,
        reports,
        load_profile(arguments.hw),
        command=f"python -m benchmarks.accuracy run {arguments.cases} --hw {arguments.hw}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_accuracy(result, arguments.output)
    print("\n".join(section(result)))
    return 0


def write_page(arguments: argparse.Namespace) -> int:
    """Write the page of all results."""
    write_atomically(arguments.output, page([load_accuracy(path) for path in arguments.results]))
    return 0


def _cases(arguments: argparse.Namespace) -> Mapping[str, AccuracyCase]:
    cases = load_accuracy_cases(arguments.cases)
    if unknown := set(arguments.only) - set(cases):
        raise UserError(f"{arguments.cases}: has no case {min(unknown)}; it has {', '.join(cases)}")
    return {name: case for name, case in cases.items() if not arguments.only or name in arguments.only}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="{run,sum,page}")
    for name, function in (("run", run), ("sum", sum_up)):
        command = commands.add_parser(name, help=(function.__doc__ or "").lower())
        command.set_defaults(function=function)
        command.add_argument("cases", type=Path, help="cases, YAML")
        command.add_argument("--hw", required=True, help="profile of this machine")
        command.add_argument(
            "--reports", required=True, type=Path, metavar="DIR", help="where reports are kept"
        )
        command.add_argument(
            "--only", nargs="*", default=[], metavar="CASE", help="these cases (default: all)"
        )
    commands.choices["run"].add_argument("--offload-dir", type=Path, default=Path(tempfile.gettempdir()))
    commands.choices["sum"].add_argument("-o", "--output", type=Path, required=True, help="result, JSON")
    command = commands.add_parser("page", help=(write_page.__doc__ or "").lower())
    command.set_defaults(function=write_page)
    command.add_argument("results", nargs="+", type=Path, help="results, JSON")
    command.add_argument("-o", "--output", type=Path, required=True, help="page, Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(run_cli(main))
