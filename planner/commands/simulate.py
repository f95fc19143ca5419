"""`planner simulate`: plays a plan's schedule task by task against a profile."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import RenderableType

from hwprofiles.errors import UserError
from hwprofiles.terminal import make_console
from planner.commands.options import add_plan
from planner.commands.plan_rates import add_plan_profile, rates_of, stages_at
from planner.pipeline import formula_of
from planner.plan import Plan, load_plan
from planner.pricing import price
from planner.render_simulation import simulation_view, stages_simulation_view
from planner.sample import MAX_TASKS, NUM_TOKENS, representative, representatives
from planner.simulate import Simulation, simulate
from planner.simulate_stages import parts_of, simulate_stages
from planner.trace import PREDICTED, TraceWriter, write_prediction


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The plan, the profile, and how much is played."""
    add_plan(parser)
    add_plan_profile(parser)
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write the tasks as a Chrome/Perfetto trace (JSON)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="decode passes to play beside the first and the last; the others are interpolated "
        f"(default: all, or {NUM_TOKENS} where a block has more than {MAX_TASKS} tasks)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Play it, show it beside the closed formula, and write the trace."""
    if arguments.tokens is not None and arguments.tokens < 1:
        raise UserError(f"--tokens is {arguments.tokens}; play at least one")
    plan = load_plan(arguments.plan)
    if plan.stages:
        view, simulations = _of_stages(stages_at(plan, arguments), arguments.tokens)
    else:
        view, simulations = _of_one(plan, arguments)
    make_console().print(view)
    if arguments.trace:
        with TraceWriter(arguments.trace) as writer:
            for rank, simulation in enumerate(simulations):
                name = f"{PREDICTED}, {plan.rank_name(rank)}" if plan.stages else PREDICTED
                write_prediction(writer, simulation, plan.of_rank(rank).ledger, name)
        print(f"trace written to {arguments.trace}; open it at https://ui.perfetto.dev")
    return 0


def _of_one(plan: Plan, arguments: argparse.Namespace) -> tuple[RenderableType, list[Simulation]]:
    sizes, rates = plan.sizes(), rates_of(plan, arguments)
    simulation = simulate(sizes, rates, representative(sizes, arguments.tokens))
    return simulation_view(price(sizes, rates), simulation), [simulation]


def _of_stages(plan: Plan, num_tokens: int | None) -> tuple[RenderableType, list[Simulation]]:
    parts = parts_of(plan)
    simulations = simulate_stages(parts, representatives([part.sizes for part in parts], num_tokens))
    return stages_simulation_view(formula_of(plan), simulations), simulations
