"""Is the chosen plan the best one? Runs it beside its neighbours, simple baselines and given policies, in turn.

    python -m benchmarks.best_plan run benchmarks/best-plan-two-core.yaml --hw hw.yaml --reports reports
    python -m benchmarks.best_plan sum benchmarks/best-plan-two-core.yaml --hw hw.yaml --reports reports -o result.json
    python -m benchmarks.best_plan page benchmarks/results/best-plan/*.json -o docs/best-plan.md

`run` keeps a report for each plan and round and leaves out what has one, so that it can be stopped and gone on with.
The first round runs every plan, the others the chosen one and those that were fastest then.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.best_plan_page import page, section
from benchmarks.best_plan_result import CHOSEN, BestPlan, BestPlanCase, case_runs, predicted_rate, summed_up
from benchmarks.best_plan_rivals import rivals
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
from hwprofiles.errors import run_cli
from hwprofiles.files import write_atomically
from hwprofiles.profile import load_profile
from planner.plan import Plan, load_plan
from planner.policy import Policy
from planner.report import RunReport, load_report

ROUNDS = 3
FASTEST = 4
"""Plans of the first round that the others repeat, beside the chosen one."""


def run(arguments: argparse.Namespace) -> int:
    """Run what has no report yet; 1 if a plan failed."""
    failed = 0
    command = f"python -m benchmarks.best_plan run {arguments.cases} --hw {arguments.hw}"
    arguments.reports.mkdir(parents=True, exist_ok=True)
    keep_setting(arguments.reports, setting_of(load_profile(arguments.hw), command))
    for name, case in _cases(arguments).items():
        directory = arguments.reports / name
        directory.mkdir(parents=True, exist_ok=True)
        plans = plans_of(case, arguments.hw, directory)
        for number in range(1, ROUNDS + 1):
            labels = list(plans) if number == 1 else _fastest(directory)
            failed += _run_round({label: plans[label] for label in labels}, number, directory, arguments)
    return 1 if failed else 0


def sum_up(arguments: argparse.Namespace) -> int:
    """Hold the chosen plans against the others, from the reports."""
    cases = _cases(arguments)
    reports = {name: _reports(arguments.reports / name) for name in cases}
    result = summed_up(cases, reports, kept_setting(arguments.reports))
    write_json_result(result, arguments.output)
    print("\n".join(section(result)))
    return 0


def write_page(arguments: argparse.Namespace) -> int:
    """Write the page of all results."""
    results = [load_json_result(path, BestPlan) for path in arguments.results]
    write_atomically(arguments.output, page(results))
    return 0


def planner_flags(case: BestPlanCase) -> list[str]:
    """Of `planner search`."""
    return shlex.split(case.planner)


def plans_of(case: BestPlanCase, hw: str, directory: Path) -> dict[str, Plan]:
    """The chosen plan and its rivals; the chosen one and given policies are made once and kept."""
    chosen, flags = directory / "chosen.yaml", planner_flags(case)
    if not chosen.exists():
        run_command(["planner", "search", *flags, "--hw", hw, "-o", str(chosen)])
    given: dict[str, Policy] = {}
    for label, policy in (case.given or {}).items():
        path = directory / f"{label}.yaml"
        if not path.exists():
            percents = given_policy(policy.percent, policy.batch)
            run_command(["planner", "estimate", *flags, *percents, "--hw", hw, "-o", str(path)])
        given[label] = load_plan(path).policy
    plan = load_plan(chosen)
    return {CHOSEN: plan, **rivals(plan, given)}


def _run_round(plans: Mapping[str, Plan], number: int, directory: Path, arguments: argparse.Namespace) -> int:
    """How many failed."""

    def run_one(label: str, kept: Path) -> RunReport:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "plan.yaml")
            path.write_text(plans[label].to_yaml())
            return run_plan(path, arguments, kept)

    def line(label: str, report: RunReport) -> str:
        predicted = predicted_rate(plans[label])
        measured = report.throughput_tokens_per_s or 0.0
        return f"{directory.name}, round {number}, {label}: {measured:.2f} tok/s ({predicted:.2f})"

    return run_cases({label: directory / f"{label}.{number}.json" for label in plans}, run_one, line)


def _fastest(directory: Path) -> Sequence[str]:
    """The chosen plan, and those that were fastest so far."""
    found = case_runs(directory.name, _reports(directory))
    return [CHOSEN, *[plan.label for plan in found.plans if plan.label != CHOSEN][:FASTEST]]


def _reports(directory: Path) -> dict[str, list[RunReport]]:
    """By plan, round by round."""
    found: dict[str, list[RunReport]] = {}
    for path in sorted(directory.glob("*.json")):
        found.setdefault(path.stem.rpartition(".")[0], []).append(load_report(path))
    return found


def _cases(arguments: argparse.Namespace) -> Mapping[str, BestPlanCase]:
    return load_named(arguments.cases, BestPlanCase, arguments.only)


def main() -> int:
    """Run, sum up or write the page."""
    return run_function(parser_of(__doc__, run, sum_up, write_page).parse_args())


if __name__ == "__main__":
    sys.exit(run_cli(main))
