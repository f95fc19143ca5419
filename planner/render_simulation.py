"""Render: a simulation beside the closed formula, as tables and sentences a person reads."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from hwprofiles.units import format_seconds
from planner.bottleneck import phase_activity, sentences
from planner.plan import PHASES, Prediction
from planner.render import make_table
from planner.report import PhaseActivity
from planner.simulate import Simulation


def simulation_view(formula: Prediction, simulation: Simulation) -> RenderableType:
    """Both phases simulated and by the closed formula, busy shares, what binds, throughput."""
    found = [phase_activity(phase, simulation.phases[phase]) for phase in PHASES]
    phases = [phase for phase in found if phase]
    summary = (
        f"[bold]Throughput {simulation.throughput_tokens_per_s:,.2f} generated tokens/s[/bold] simulated, "
        f"{formula.throughput_tokens_per_s:,.2f} by the closed formula"
    )
    return Group(_phases(formula, phases), *map(sentences, phases), summary, _played(simulation))


def _phases(formula: Prediction, phases: list[PhaseActivity]) -> Table:
    predictions = {"prefill": formula.prefill, "decode": formula.decode}
    table = make_table("One block", "phase", "simulated", "closed formula", "difference", "busy")
    for found in phases:
        formula_s = predictions[found.phase].seconds
        table.add_row(
            found.phase,
            format_seconds(found.seconds),
            format_seconds(formula_s),
            f"{100 * (found.seconds / formula_s - 1):+.1f}%" if formula_s else "",
            busy_text(found),
        )
    return table


def busy_text(found: PhaseActivity) -> str:
    """How much of a phase each resource is at work, the busiest first."""
    shares = sorted(found.busy_share.items(), key=lambda item: -item[1])
    return ", ".join(f"{resource} {100 * share:.0f}%" for resource, share in shares)


def _played(simulation: Simulation) -> str:
    played = simulation.sample.tokens
    if not simulation.num_skipped:
        return f"all {len(played)} tokens of the block played"
    tokens = ", ".join(map(str, played))
    return f"tokens {tokens} played, the {simulation.num_skipped} between them interpolated"
