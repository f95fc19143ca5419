"""docs/performance.md from benchmarks/results/*.json: python -m benchmarks.table"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.case_text import case_section
from benchmarks.cases import Case, load_cases
from benchmarks.figures import Figures, best_run, figures_of
from benchmarks.json_result import load_json_result
from benchmarks.result import Result
from hwprofiles.errors import run_cli
from hwprofiles.files import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
HEAD = """# Performance

Written by `python -m benchmarks.table` from benchmarks/results; a test holds the two together. How to run the
benchmarks, and what each peer needs, is in [benchmarks/README.md](../benchmarks/README.md).

* **tok/s**: generated tokens over the time of prefill and decode. Nothing is projected unless it says so.
* **bound**: the same if each phase took as long as its busiest resource's work at the rates of the profile.
  Above 100% the machine was faster than when its profile was measured.
* **to reach**: what was promised of the case before it was run.
* **peer**: the fastest of its runs in the same session, and how many times as fast ours was.
* **memory**: the measured peak over the ledger's.
* **1 of 2 GPUs, 16 of 32 cores**: a control group of so many cores and of that part of the memory; the rest of the
  host was at work meanwhile, and shares host memory's bandwidth.
"""
COLUMNS = ("case", "tok/s", "bound", "of bound", "to reach", "peer", "tok/s", "times", "to reach", "memory")


def row_of(result: Result, case: Case) -> list[str]:
    """The cells of a result, in the order of COLUMNS."""
    figures = figures_of(result.report) if result.report else None
    if figures is None:
        return [result.case, "failed", *[""] * (len(COLUMNS) - 2)]
    ours = [result.case, f"{figures.throughput:.2f}", f"{figures.bound:.2f}", f"{figures.share_of_bound:.0%}"]
    memory = ", ".join(f"{tier.tier} {tier.share:.1%}" for tier in figures.tiers if tier.share)
    return [*ours, _promised(case, figures), *_peer_cells(result, case, figures), memory]


def _promised(case: Case, figures: Figures) -> str:
    if case.target.share_of_disk is not None:
        return f"{case.target.share_of_disk:.0%} of the disk's rate; is {figures.share_of_disk:.0%}"
    return "" if case.target.share_of_bound is None else f"{case.target.share_of_bound:.0%}"


def _peer_cells(result: Result, case: Case, figures: Figures) -> list[str]:
    """Peer, its figure, how many times as fast ours was, and how many were promised."""
    if not result.peers:
        return [""] * 4
    name = result.peers[0].name
    best = best_run(result, name)
    promised = f"{case.target.times_peer:g}" if case.target.times_peer and case.target.peer == name else ""
    if best is None or not best.throughput_tokens_per_s or not best.figures:
        return [name, "failed", "", promised]
    projected = " projected" if best.figures.is_projected else ""
    times = figures.throughput / best.throughput_tokens_per_s
    return [name, f"{best.throughput_tokens_per_s:.2f}{projected}", f"{times:.1f}", promised]


def console_table(result: Result, case: Case) -> Table:
    """A result for the terminal."""
    table = Table(*COLUMNS)
    table.add_row(*row_of(result, case))
    return table


def page_of(results: Sequence[Result], cases: Mapping[str, Case]) -> str:
    """docs/performance.md."""
    lines = [HEAD, f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(row_of(result, cases[result.case]))} |" for result in results]
    sections = [case_section(result) for result in results]
    return "\n".join(lines) + "\n\n" + "\n\n".join(sections) + "\n"


def results_in(directory: Path, cases: Mapping[str, Case]) -> list[Result]:
    """All results of known cases, in the order of cases.yaml, then of the files' names."""
    order = {name: index for index, name in enumerate(cases)}
    results = [load_json_result(path, Result) for path in result_paths(directory)]
    return sorted((result for result in results if result.case in order), key=lambda found: order[found.case])


def result_paths(directory: Path) -> list[Path]:
    """The files that compare has written; other benchmarks keep theirs in the same place."""
    return [path for path in sorted(directory.glob("*.json")) if "case" in json.loads(path.read_text())]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("-o", "--output", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args()

    def body() -> int:
        cases = load_cases()
        write_atomically(options.output, page_of(results_in(options.results, cases), cases))
        return 0

    return run_cli(body)


if __name__ == "__main__":
    sys.exit(main())
