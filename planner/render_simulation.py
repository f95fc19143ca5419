"""Render: a simulation beside the closed formula, as tables and sentences a person reads."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from hwprofiles.units import format_seconds
from planner.activity import PhaseActivity
from planner.bottleneck import phase_activity, sentences
from planner.plan import PHASES, Prediction
from planner.render import make_table
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


def stages_simulation_view(formula: Prediction, simulations: Sequence[Simulation]) -> RenderableType:
    """Both phases of a pipeline, how busy each rank is in them, and what binds the busiest one."""
    first = simulations[0]
    ranks = make_table("Ranks", "rank", "phase", "busy")
    busiest: list[str] = []
    for phase in PHASES:
        played = [(rank, phase_activity(phase, each.phases[phase])) for rank, each in enumerate(simulations)]
        known = [(rank, activity) for rank, activity in played if activity]
        for rank, activity in known:
            ranks.add_row(str(rank), phase, busy_text(activity))
        if known:
            rank, activity = max(known, key=lambda each: each[1].busy_share[each[1].binding])
            busiest.append(f"rank {rank}, {sentences(activity)}")
    phases = [found for phase in PHASES if (found := phase_activity(phase, first.phases[phase]))]
    summary = (
        f"[bold]Throughput {first.throughput_tokens_per_s:,.2f} generated tokens/s[/bold] simulated, "
        f"{formula.throughput_tokens_per_s:,.2f} by the closed formula"
    )
    return Group(_phases(formula, phases, with_busy=False), ranks, *busiest, summary, _played(first))


def _phases(formula: Prediction, phases: list[PhaseActivity], *, with_busy: bool = True) -> Table:
    columns = ["phase", "simulated", "closed formula", "difference", *(["busy"] if with_busy else [])]
    table = make_table("One block", *columns)
    for found in phases:
        formula_s = formula.of(found.phase).seconds
        table.add_row(
            found.phase,
            format_seconds(found.seconds),
            format_seconds(formula_s),
            f"{100 * (found.seconds / formula_s - 1):+.1f}%" if formula_s else "",
            *([busy_text(found)] if with_busy else []),
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
