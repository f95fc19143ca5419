"""Render a calibration: predictions before and after beside what was measured, and the factors."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table

from hwprofiles.profile import Calibration
from hwprofiles.units import format_seconds
from planner.calibrate import Outcome, PhaseError
from planner.factors import Factors, resource_of
from planner.render import make_table


def calibration_view(outcome: Outcome) -> RenderableType:
    """Each run's phases before and after, outliers by name, the factors, and the errors in a line."""
    calibration = outcome.calibration
    return Group(
        _errors(outcome.phases),
        *_outliers(outcome.phases),
        _factors(calibration.factors),
        summary(calibration),
    )


def summary(calibration: Calibration) -> str:
    """The errors of the phase times before and after."""
    basis = "on the runs that were fitted"
    if calibration.num_folds:
        basis = f"on runs held out, in {calibration.num_folds} folds"
    before, after = calibration.error_before, calibration.error_after
    worst_before, worst_after = calibration.worst_before or before, calibration.worst_after or after
    return (
        f"[bold]Median error {before:.1%} before, {after:.1%} after[/bold]; "
        f"worst {worst_before:.1%} before, {worst_after:.1%} after ({basis})"
    )


def _errors(phases: tuple[PhaseError, ...]) -> Table:
    columns = ("model", "run of", "phase", "measured", "before", "error", "after", "error", "counts")
    table = make_table("Predicted phase times", *columns)
    for found in phases:
        table.add_row(
            found.report.model_name,
            found.report.created,
            found.phase,
            format_seconds(found.measured_s),
            format_seconds(found.before_s),
            f"{found.error_before:.1%}",
            format_seconds(found.after_s),
            f"{found.error_after:.1%}",
            f"{found.weight:.0%}",
        )
    return table


def _outliers(phases: tuple[PhaseError, ...]) -> Iterator[str]:
    for found in phases:
        if found.is_outlier:
            yield (
                f"[yellow]outlier[/yellow]: {found.report.model_name} of {found.report.created}: {found.phase} took "
                f"{format_seconds(found.measured_s)}, predicted {format_seconds(found.after_s)}; far from what the "
                f"other runs say, so it counts {found.weight:.0%}"
            )


def _factors(factors: Factors) -> Table:
    table = make_table("Factors on predicted seconds", "of", "factor", "its kinds of tasks")
    for resource, names in groupby(sorted(factors), key=resource_of):
        kinds = [name for name in names if name != resource]
        shown = ", ".join(f"{name.partition('.')[2]} {factors[name]:.3g}" for name in kinds)
        own = f"{factors[resource]:.3g}" if resource in factors else ""
        table.add_row(resource, own, shown)
    return table
