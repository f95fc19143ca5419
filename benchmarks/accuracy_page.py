"""The page of what benchmarks.accuracy found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.accuracy_result import Accuracy, error_of
from hwprofiles.units import MIB

LONG_S = 1.0
_OF_LONG = f"of phases that took {LONG_S:g} s or longer"


def page(results: Sequence[Accuracy]) -> str:
    """All results, one section each."""
    lines = [
        "# Predicted against measured",
        "",
        "Written by `python -m benchmarks.accuracy page benchmarks/results/accuracy/*.json -o docs/accuracy.md`; the",
        "JSONs hold the commands, the machine and the commit. Errors are predicted / measured - 1. Calibrated: every",
        "third run is used to calibrate the profile, and the others are predicted by that. Today: as predicted",
        "when the runs were summed up; formulas change, plans and runs stay as they were.",
        "",
        *_overview(results),
    ]
    for result in results:
        lines += ["", *section(result)]
    return "\n".join(lines) + "\n"


def _overview(results: Sequence[Accuracy]) -> Iterator[str]:
    """A line for each sitting, in their order in time."""
    yield "| sitting | plans | predicted: median, worst | today | calibrated | memory / ledger |"
    yield "|---|---|---|---|---|---|"
    for result in sorted(results, key=lambda result: result.setting.created):
        setting, errors = result.setting, (result.from_the_profile, result.today, result.calibrated)
        shares = [tier.measured_bytes / tier.ledger_bytes for tier in result.memory if tier.ledger_bytes]
        cells = (
            f"{setting.profile['name']}, {setting.created[:16].replace('T', ' ')}",
            str(len(result.cases)),
            *(f"{error.median:.1%}, {error.worst:.1%}" for error in errors),
            f"{min(shares):.1%} to {max(shares):.1%}" if shares else "",
        )
        yield f"| {' | '.join(cells)} |"


def _rounds(result: Accuracy) -> str:
    fewest, most = result.num_rounds, result.most_rounds or result.num_rounds
    if most == 1:
        return ""
    return f", the middle one of {fewest if fewest == most else f'{fewest} to {most}'} rounds each"


def section(result: Accuracy) -> Iterator[str]:
    """One machine: how far off, then every row."""
    yield from result.setting.heading()
    yield ""
    yield f"{len(result.cases)} plans{_rounds(result)}."
    yield ""
    yield "| | median error | worst error |"
    yield "|---|---|---|"
    long = [row for row in result.rows if row.measured_s >= LONG_S]
    for name, error in (
        ("from the profile alone, as predicted before the run", result.from_the_profile),
        (_OF_LONG, error_of([row.predicted_s / row.measured_s for row in long])),
        ("by the formulas of today", result.today),
        (_OF_LONG, error_of([row.today_s / row.measured_s for row in long])),
        ("calibrated, on the others", result.calibrated),
    ):
        yield f"| {name} | {error.median:.1%} | {error.worst:.1%} |"
    yield ""
    yield "| case | phase | measured s | predicted s | error | today s | error | calibrated s | error |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in result.rows:
        off = row.predicted_s / row.measured_s - 1
        again = row.calibrated_s
        after = "used | " if again is None else f"{again:.2f} | {again / row.measured_s - 1:+.1%}"
        yield (
            f"| {row.case} | {row.phase} | {row.measured_s:.2f} | {row.predicted_s:.2f} "
            f"| {off:+.1%} | {row.today_s:.2f} | {row.today_s / row.measured_s - 1:+.1%} | {after} |"
        )
    yield ""
    yield "| case | tier | ledger MiB | measured / ledger |"
    yield "|---|---|---|---|"
    for tier in result.memory:
        share = tier.measured_bytes / tier.ledger_bytes if tier.ledger_bytes else 0.0
        yield f"| {tier.case} | {tier.tier} | {tier.ledger_bytes / MIB:.0f} | {share:.1%} |"
