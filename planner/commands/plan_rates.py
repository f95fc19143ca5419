"""`--hw` of commands that take a plan: the rates at which it is priced or played."""

from __future__ import annotations

import argparse
import sys

from hwprofiles.errors import UserError
from hwprofiles.profile import HardwareProfile, load_profile
from planner.plan import Plan
from planner.rates import Rates
from planner.simulate import rates_for
from planner.stage_rates import priced_at


def add_plan_profile(parser: argparse.ArgumentParser) -> None:
    """A profile in place of the plan's rates."""
    parser.add_argument(
        "--hw",
        metavar="NAME-OR-PATH",
        help="hardware profile (default: the rates in the plan, which it was predicted with)",
    )


def rates_of(plan: Plan, arguments: argparse.Namespace) -> Rates:
    """The plan's own rates, or those of the profile that the flag names, which warns where it is another one."""
    if arguments.hw is None:
        return plan.known_rates()
    profile = load_profile(arguments.hw)
    rates = rates_for(plan, profile)
    _warn_of_other_profile(plan, profile)
    return rates


def stages_at(plan: Plan, arguments: argparse.Namespace) -> Plan:
    """A pipeline's plan at its own rates, or at those of hosts like the profile's that the flag names."""
    if arguments.hw is None:
        return plan
    profile = load_profile(arguments.hw)
    found = priced_at(plan, profile)
    _warn_of_other_profile(plan, profile)
    return found


def refuse_stages(plan: Plan, command: str) -> None:
    """A UserError for what is said of plans of one rank only."""
    if plan.stages:
        raise UserError(
            f"{command} is for plans of one rank, this one has {len(plan.stages)}; "
            "planner simulate shows what binds each of them"
        )


def _warn_of_other_profile(plan: Plan, profile: HardwareProfile) -> None:
    if profile.digest() != plan.hardware.digest:
        print(
            f"warning: the plan was made with another profile ({plan.hardware.name}), or with another version "
            f"of {profile.name}; what follows is for the one given",
            file=sys.stderr,
        )
