"""Render a calibration: predictions before and after beside what was measured."""

from __future__ import annotations

from rich.console import Group, RenderableType

from hwprofiles.units import format_seconds
from planner.calibrate import Outcome
from planner.render import make_table


def calibration_view(outcome: Outcome) -> RenderableType:
    """Each run's phases before and after, and the factors."""
    calibration = outcome.profile.calibration
    assert calibration is not None
    table = make_table("Predicted phase times", "phase", "measured", "before", "error", "after", "error")
    for phase in outcome.phases:
        table.add_row(
            phase.phase,
            format_seconds(phase.measured_s),
            format_seconds(phase.before_s),
            f"{100 * phase.error_before:.1f}%",
            format_seconds(phase.after_s),
            f"{100 * phase.error_after:.1f}%",
        )
    factors = ", ".join(f"{name} {factor:.3g}" for name, factor in calibration.factors.items())
    basis = "each run predicted by a fit to the others" if outcome.held_out else "on the run it was fitted to"
    summary = (
        f"[bold]Median error {100 * calibration.error_before:.1f}% before, "
        f"{100 * calibration.error_after:.1f}% after[/bold] ({basis})"
    )
    return Group(table, f"factors on predicted seconds: {factors}", summary)
