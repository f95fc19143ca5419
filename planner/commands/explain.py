"""`planner explain`: what binds a plan, what more of a resource would bring, and why it is not another plan."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from hwprofiles.errors import UserError
from hwprofiles.terminal import make_console
from hwprofiles.yaml_io import to_plain
from planner.commands.estimate import add_policy, changed_policy
from planner.commands.options import add_plan
from planner.commands.output import progress
from planner.commands.plan_rates import add_plan_profile, rates_of, refuse_stages
from planner.compare import differing_lines
from planner.explain import Explanation, reasons
from planner.machine_change import FORMS, parse_changes, unit_changes
from planner.plan import Plan, load_plan
from planner.policy import Policy
from planner.problem import Problem
from planner.rates import Rates
from planner.render_explain import explanation_view
from planner.what_if import what_ifs
from planner.why_not import why_not


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The plan, and what to say of it."""
    add_plan(parser)
    add_plan_profile(parser)
    parser.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="CHANGE",
        help=f"search again on a changed machine; may be given several times: {FORMS}",
    )
    parser.add_argument(
        "--why-not",
        metavar="FLAGS",
        help="compare a policy that you prefer: flags of `planner estimate` in quotes, such as "
        '"--percent 20 80 0 100 0 100 --gpu-batch-size 48 --num-gpu-batches 4"; what is left out is as in the plan',
    )
    parser.add_argument("--diff", type=Path, metavar="OTHER.YAML", help="show what differs in another plan")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Answer what is asked; everything about the plan where nothing in particular is."""
    asked = [parse_changes(text) for text in arguments.what_if]
    plan = load_plan(arguments.plan)
    diff = differing_lines(plan, load_plan(arguments.diff)) if arguments.diff else None
    found = Explanation(plan_digest=plan.digest(), reasons=None, what_ifs=None, why_not=None, diff=diff)
    everything = not asked and arguments.why_not is None and diff is None
    if asked or everything or arguments.why_not is not None:
        refuse_stages(plan, "planner explain")
        problem = _problem(plan, rates_of(plan, arguments))
        plan = problem.priced(plan)
        if everything:
            asked = unit_changes(problem)
            found = replace(found, reasons=reasons(problem, plan))
        if asked:
            with progress() as report:
                found = replace(found, what_ifs=what_ifs(problem, plan, asked, report))
        if arguments.why_not is not None:
            policy = _preferred(problem, plan.policy, arguments.why_not)
            found = replace(found, why_not=why_not(problem, plan, policy))
    if arguments.json:
        print(json.dumps(to_plain(found), indent=1))
    else:
        make_console().print(explanation_view(found))
    return 0


def _problem(plan: Plan, rates: Rates) -> Problem:
    """What the plan was sought for, its limits included."""
    return Problem(
        model=plan.model.spec(),
        workload=plan.workload,
        target=plan.hardware,
        rates=rates,
    )


class _Parser(argparse.ArgumentParser):
    """A mistake is the user's, in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"--why-not: {message}")


def _preferred(problem: Problem, policy: Policy, text: str) -> Policy:
    """The policy that --why-not's flags make of the plan's."""
    parser = _Parser(prog="--why-not", add_help=False)
    add_policy(parser, whole=False)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--why-not {text!r} cannot be split into words ({error})") from None
    return changed_policy(problem, policy, parser.parse_args(words))
