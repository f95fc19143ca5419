"""A run's report as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table

from hwprofiles.units import format_bytes, format_seconds
from planner.bottleneck import sentences
from planner.plan import PHASES
from planner.report import RunReport


def report_table(report: RunReport) -> Group:
    """Predicted beside measured: phases, tasks, memory; of each plan where the job went on with another one."""
    if report.replanned:
        before, after = (report_table(leg) for leg in report.legs)
        return Group(
            before, f"[bold]{report.replanned.at}[/bold]: {report.replanned.reason}", after, _phases(report)
        )
    return Group(
        _phases(report),
        _tasks(report),
        _memory(report),
        *([_ranks(report)] if report.ranks else []),
        *_remarks(report),
    )


def _phases(report: RunReport) -> Table:
    table = _table(
        f"{report.model_name}: {report.num_requests} requests in {report.num_blocks} blocks",
        ("phase", "binding"),
        ("phase", "predicted", "measured", "error", "tok/s", "binding"),
    )
    for phase in report.phases:
        ran = phase.measured_s > 0
        table.add_row(
            phase.phase,
            format_seconds(phase.predicted_s) if ran else "-",
            format_seconds(phase.measured_s) if ran else "not run",
            _error(phase.predicted_s, phase.measured_s) if ran else "-",
            _number(phase.tokens_per_s),
            report.binding.get(phase.phase, "-"),
        )
    predicted, measured = report.predicted_throughput_tokens_per_s, report.throughput_tokens_per_s
    table.add_row(
        "generated tok/s",
        _number(predicted),
        _number(measured),
        _error(predicted, measured) if predicted and measured else "-",
        "",
        "",
    )
    return table


def _tasks(report: RunReport) -> Table:
    table = _table(
        "tasks",
        ("phase", "task", "resource"),
        ("phase", "task", "resource", "count", "bytes", "predicted", "measured", "rate"),
    )
    for task in report.tasks:
        table.add_row(
            task.phase,
            task.kind,
            task.resource,
            str(task.count),
            format_bytes(task.num_bytes) if task.num_bytes else "",
            format_seconds(task.predicted_s),
            format_seconds(task.measured_s),
            f"{format_bytes(task.num_bytes / task.measured_s)}/s"
            if task.num_bytes and task.measured_s
            else "",
        )
    return table


def _memory(report: RunReport) -> Table:
    table = _table("memory at its peak", ("tier",), ("tier", "ledger", "measured", "limit"))
    for row in report.memory:
        measured = "" if row.measured_peak_bytes is None else format_bytes(row.measured_peak_bytes)
        table.add_row(row.tier, format_bytes(row.ledger_bytes), measured, format_bytes(row.limit_bytes))
    return table


def _ranks(report: RunReport) -> Table:
    """What binds each rank of a pipeline, how busy that is, and what the rank holds."""
    table = _table(
        f"{len(report.ranks)} ranks",
        ("rank", *PHASES),
        ("rank", *PHASES, "ledger", "measured"),
    )
    for rank in report.ranks:
        busy = {found.phase: found.busy_share.get(found.binding, 0.0) for found in rank.activity}
        cells = (f"{rank.binding[p]} {busy[p]:.0%}" if p in busy else "not run" for p in PHASES)
        host = [row for row in rank.memory if row.tier == "host"] or [
            row for row in rank.memory if row.tier in {"gpu", "cpu"}
        ]
        peaks = [row.measured_peak_bytes for row in host]
        table.add_row(
            str(rank.rank),
            *cells,
            ", ".join(f"{row.tier} {format_bytes(row.ledger_bytes)}" for row in host),
            ", ".join(format_bytes(peak) for peak in peaks if peak is not None),
        )
    return table


def _remarks(report: RunReport) -> Iterator[str]:
    yield from map(sentences, report.activity)
    yield (
        f"{report.prompt_tokens} prompt tokens and {report.padding_tokens} of padding, "
        f"{report.generated_tokens} generated"
    )
    if report.overlap is not None:
        yield f"{report.overlap:.2f} tasks at work at once on average"
    if any(row.tier == "host" for row in report.memory):
        yield "the gpu tier is emulated: it lies in host memory, where `host` counts both"


def _table(title: str, words: tuple[str, ...], columns: tuple[str, ...]) -> Table:
    """Columns of words at the left, of numbers, which never wrap, at the right."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        if column in words:
            table.add_column(column)
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _error(predicted: float, measured: float) -> str:
    return f"{100 * (predicted / measured - 1):+.0f}%"
