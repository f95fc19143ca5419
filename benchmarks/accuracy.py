"""Predicted against measured: runs plans, good ones and bad ones, and says how far each prediction was off.

    python -m benchmarks.accuracy run benchmarks/accuracy-two-core.yaml --hw hw.yaml --reports reports
    python -m benchmarks.accuracy sum benchmarks/accuracy-two-core.yaml --hw hw.yaml --reports reports -o result.json
    python -m benchmarks.accuracy page benchmarks/results/accuracy/*.json -o docs/accuracy.md

`run` keeps a report for each case and round and leaves out what has one, so that it can be stopped and gone on with.
What counts of each case is the round that took neither longest nor shortest: cases of a second, in which a shared host
may be slow all along, can have more rounds than others (`run --rounds 3 --only ...`).
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.accuracy_page import page, section
from benchmarks.accuracy_result import Accuracy, AccuracyCase, median_round, summed_up
from benchmarks.json_result import load_json_result, write_json_result
from benchmarks.plan_runs import (
    given_policy,
    load_named,
    parser_of,
    run_cases,
    run_command,
    run_function,
    run_plan,
)
from benchmarks.setting import keep_setting, kept_setting, setting_of
from hwprofiles.errors import UserError, run_cli
from hwprofiles.files import write_atomically
from hwprofiles.profile import load_profile
from planner.report import RunReport, load_report


def planner_command(case: AccuracyCase, hw: str, plan: Path) -> list[str]:
    """What makes the plan of a case."""
    command = ["planner", "search" if case.percent is None else "estimate", *shlex.split(case.planner)]
    if case.percent is not None:
        command += given_policy(case.percent, case.batch)
    return [*command, "--hw", hw, "-o", str(plan)]


def run(arguments: argparse.Namespace) -> int:
    """Run what has no report yet; 1 if a case failed."""
    cases = _cases(arguments)
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}; it must be 1 or more")
    arguments.reports.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks.accuracy run {arguments.cases} --hw {arguments.hw}"
    keep_setting(arguments.reports, setting_of(load_profile(arguments.hw), command))

    def run_case(name: str, kept: Path) -> RunReport:
        with tempfile.TemporaryDirectory() as directory:
            plan = Path(directory, "plan.yaml")
            run_command(planner_command(cases[name], arguments.hw, plan))
            return run_plan(plan, arguments, kept)

    failed = 0
    for number in range(1, arguments.rounds + 1):
        failed += run_cases({name: _report(arguments, name, number) for name in cases}, run_case, _line)
    return 1 if failed else 0


def sum_up(arguments: argparse.Namespace) -> int:
    """Compute errors from the reports, and from a calibration on a third of them."""
    cases, profile = _cases(arguments), load_profile(arguments.hw)
    rounds = {name: _rounds(arguments, name) for name in cases}
    reports = {name: median_round(found) for name, found in rounds.items()}
    counts = [len(found) for found in rounds.values()]
    result = summed_up(cases, reports, profile, kept_setting(arguments.reports), (min(counts), max(counts)))
    write_json_result(result, arguments.output)
    print("\n".join(section(result)))
    return 0


def write_page(arguments: argparse.Namespace) -> int:
    """Write the page of all results."""
    results = [load_json_result(path, Accuracy) for path in arguments.results]
    write_atomically(arguments.output, page(results))
    return 0


def _cases(arguments: argparse.Namespace) -> Mapping[str, AccuracyCase]:
    return load_named(arguments.cases, AccuracyCase, arguments.only)


def _report(arguments: argparse.Namespace, name: str, number: int) -> Path:
    path: Path = arguments.reports / (f"{name}.json" if number == 1 else f"{name}.{number}.json")
    return path


def _rounds(arguments: argparse.Namespace, name: str) -> list[RunReport]:
    """Of the first, and of those that follow without a gap."""
    found = [load_report(_report(arguments, name, 1))]
    while (path := _report(arguments, name, len(found) + 1)).exists():
        found.append(load_report(path))
    return found


def _line(name: str, report: RunReport) -> str:
    phases = (f"{p.phase} {p.measured_s:.2f} s ({p.predicted_s:.2f})" for p in report.phases)
    return f"{name}: {', '.join(phases)}"


def main() -> int:
    """Run, sum up or write the page."""
    return run_function(parser_of(__doc__, run, sum_up, write_page, has_rounds=True).parse_args())


if __name__ == "__main__":
    sys.exit(run_cli(main))
