"""Predicted against measured: runs plans, good ones and bad ones, and says how far each prediction was off.

    python -m benchmarks.accuracy benchmarks/accuracy-two-core.yaml --hw hw.yaml -o accuracy-two-core.json
    python -m benchmarks.accuracy --page docs/accuracy.md benchmarks/results/accuracy-*.json

The first command measures; predictions are from the profile alone. Every third run is then taken to calibrate the
profile, and the others are predicted once more. The second writes the page of everything measured, bad rows too.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import yaml

from benchmarks.facts import current_commit, machine_facts
from hwprofiles.profile import HardwareProfile, load_profile
from planner.calibrate import calibrate
from planner.machine import make_rates
from planner.plan import Phase
from planner.pricing import price
from planner.report import RunReport, load_report

EVERY = 3
"""Of the runs, those that calibrate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One phase of one run."""

    case: str
    phase: Phase
    measured_s: float
    predicted_s: float
    calibrated_s: float | None
    """By a profile calibrated on other runs; None for those runs themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One tier of one run."""

    case: str
    tier: str
    ledger_bytes: int
    measured_bytes: int


def commands_of(case: Mapping[str, str], hw: str, directory: Path) -> list[list[str]]:
    """The planner's command, and the executor's."""
    plan, report = str(directory / "plan.yaml"), str(directory / "report.json")
    planner = ["planner", "estimate" if "percent" in case else "search", *shlex.split(case["planner"])]
    if "percent" in case:
        size, count = case["batch"].split(" x ")
        planner += [
            "--percent",
            *case["percent"].split(),
            "--gpu-batch-size",
            size,
            "--num-gpu-batches",
            count,
        ]
    run = ["executor", "run", plan, "--dummy-weights", "--report", report, "--offload-dir", str(directory)]
    return [[*planner, "--hw", hw, "-o", plan], run]


def run_case(case: Mapping[str, str], hw: str, offload_dir: Path) -> RunReport:
    """Plan it and run it; SystemExit with what the command said where it fails."""
    with tempfile.TemporaryDirectory(dir=offload_dir) as name:
        for command in commands_of(case, hw, Path(name)):
            done = subprocess.run(
                [sys.executable, "-m", *command], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{shlex.join(command)}: {done.stderr.strip()[-500:]}")
        return load_report(Path(name, "report.json"))


def rows_of(reports: Mapping[str, RunReport], profile: HardwareProfile) -> Iterator[Row]:
    """Each phase of each run, predicted by the profile and by the profile calibrated on a third of the runs."""
    known = set(list(reports)[::EVERY])
    calibrated = calibrate(profile, [reports[name] for name in known], force=False).profile
    for name, report in reports.items():
        again = price(report.plan.sizes(), make_rates(calibrated, report.plan.model.dtype))
        for phase in report.phases:
            planned = report.plan.prediction.of(phase.phase).seconds
            if not planned:
                continue
            blocks = phase.predicted_s / planned
            yield Row(
                case=name,
                phase=phase.phase,
                measured_s=phase.measured_s,
                predicted_s=phase.predicted_s,
                calibrated_s=None if name in known else again.of(phase.phase).seconds * blocks,
            )


def memory_of(reports: Mapping[str, RunReport]) -> Iterator[Memory]:
    """Each tier whose peak could be told apart."""
    for name, report in reports.items():
        for tier in report.memory:
            if tier.measured_peak_bytes is not None:
                yield Memory(
                    case=name,
                    tier=tier.tier,
                    ledger_bytes=tier.ledger_bytes,
                    measured_bytes=tier.measured_peak_bytes,
                )


def errors(pairs: Iterator[tuple[float, float]]) -> dict[str, float]:
    """Median and worst of |predicted / measured - 1|."""
    found = [abs(predicted / measured - 1) for predicted, measured in pairs]
    return {"median": median(found), "worst": max(found)}


def measure(cases_path: Path, hw: str, offload_dir: Path, names: Sequence[str]) -> dict[str, object]:
    """Run the cases and sum up."""
    cases: dict[str, dict[str, str]] = yaml.safe_load(cases_path.read_text())
    reports: dict[str, RunReport] = {}
    for name in names or cases:
        reports[name] = run_case(cases[name], hw, offload_dir)
        phases = ", ".join(
            f"{p.phase} {p.measured_s:.2f} s ({p.predicted_s:.2f})" for p in reports[name].phases
        )
        print(f"{name}: {phases}", flush=True)
    profile = load_profile(hw)
    rows = list(rows_of(reports, profile))
    return {
        "command": f"python -m benchmarks.accuracy {cases_path} --hw {hw}",
        "commit": current_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "profile": {"name": profile.name, "digest": profile.digest(), "created": profile.created},
        "cases": {name: dict(cases[name]) for name in reports},
        "from_the_profile": errors((row.predicted_s, row.measured_s) for row in rows),
        "calibrated": errors((row.calibrated_s, row.measured_s) for row in rows if row.calibrated_s),
        "rows": [asdict(row) for row in rows],
        "memory": [asdict(row) for row in memory_of(reports)],
    }


def page(results: Sequence[Mapping[str, object]]) -> str:
    """The page of all results, as Markdown."""
    lines = [
        "# Predicted against measured",
        "",
        "Written by `python -m benchmarks.accuracy --page docs/accuracy.md benchmarks/results/accuracy-*.json`; the",
        "JSONs hold the commands, the machine and the commit. Errors are predicted / measured - 1. Calibrated: every",
        "third run is used to calibrate the profile, and predicts the others.",
    ]
    for result in results:
        lines += ["", *_section(result)]
    return "\n".join(lines) + "\n"


def _section(result: Mapping[str, object]) -> Iterator[str]:
    machine, profile = result["machine"], result["profile"]
    yield f"## {profile['name']}, {str(result['created'])[:10]}"
    yield ""
    yield f"{machine['platform']}, torch {machine['torch']}; commit {str(result['commit'])[:12]}."
    for name, key in (
        ("From the profile alone", "from_the_profile"),
        ("Calibrated, on the others", "calibrated"),
    ):
        yield f"{name}: median error {result[key]['median']:.1%}, worst {result[key]['worst']:.1%}."
    yield ""
    yield "| case | phase | measured s | predicted s | error | calibrated s | error |"
    yield "|---|---|---|---|---|---|---|"
    for row in result["rows"]:
        error = row["predicted_s"] / row["measured_s"] - 1
        again = row["calibrated_s"]
        after = f"{again:.2f} | {again / row['measured_s'] - 1:+.1%}" if again else "used | "
        yield (
            f"| {row['case']} | {row['phase']} | {row['measured_s']:.2f} | {row['predicted_s']:.2f} "
            f"| {error:+.1%} | {after} |"
        )
    yield ""
    yield "| case | tier | ledger MiB | measured / ledger |"
    yield "|---|---|---|---|"
    for row in result["memory"]:
        share = row["measured_bytes"] / row["ledger_bytes"]
        yield f"| {row['case']} | {row['tier']} | {row['ledger_bytes'] / 2**20:.0f} | {share:.1%} |"


def main() -> int:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, help="cases (YAML), or with --page results (JSON)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page of these results")
    parser.add_argument("--hw", help="profile of this machine")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="results, as JSON")
    parser.add_argument("--offload-dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--only", nargs="*", default=[], metavar="CASE", help="these cases (default: all)")
    arguments = parser.parse_args()
    if arguments.page:
        arguments.page.write_text(page([json.loads(path.read_text()) for path in arguments.paths]))
        return 0
    if not (arguments.hw and arguments.output):
        parser.error("--hw and -o are needed to measure")
    result = measure(arguments.paths[0], arguments.hw, arguments.offload_dir, arguments.only)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(_section(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
