"""`planner simulate`: plays a plan's schedule task by task against a profile."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hwprofiles.errors import UserError
from hwprofiles.profile import load_profile
from hwprofiles.terminal import make_console
from planner.commands.options import add_plan, add_profile
from planner.plan import load_plan
from planner.pricing import price
from planner.render_simulation import simulation_view
from planner.simulate import MAX_TASKS, NUM_TOKENS, rates_for, representative, simulate
from planner.trace import TraceWriter, write_prediction


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The plan, the profile, and how much is played."""
    add_plan(parser)
    add_profile(parser)
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
    plan, profile = load_plan(arguments.plan), load_profile(arguments.hw)
    sizes, rates = plan.sizes(), rates_for(plan, profile)
    if profile.digest() != plan.hardware.digest:
        print(
            f"warning: the plan was made with another profile ({plan.hardware.name}), or with another version "
            f"of {profile.name}; what follows is for the one given",
            file=sys.stderr,
        )
    simulation = simulate(sizes, rates, representative(sizes, arguments.tokens))
    make_console().print(simulation_view(price(sizes, rates), simulation))
    if arguments.trace:
        with TraceWriter(arguments.trace) as writer:
            write_prediction(writer, simulation, plan.ledger)
        print(f"trace written to {arguments.trace}; open it at https://ui.perfetto.dev")
    return 0
