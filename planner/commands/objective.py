"""Flags that say what is sought of a plan, and the search for it: throughput, latency, or a job done in time."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal, get_args

from hwprofiles.errors import UserError
from hwprofiles.units import format_seconds, parse_duration
from planner.commands.options import Inputs
from planner.latency import latency_s, quickest
from planner.plan import Plan
from planner.problem import Problem
from planner.request import Request
from planner.search import Keeper, Reporter, search
from planner.shortage import explain_shortage

Kind = Literal["throughput", "latency", "deadline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is sought."""

    kind: Kind
    finish_in_s: float = 0.0
    """With a deadline."""


def add_objective(parser: argparse.ArgumentParser) -> None:
    """What is sought, and until when."""
    parser.add_argument(
        "--objective",
        choices=get_args(Kind),
        help="highest throughput, least time of one block, or least memory with which the job is done in time "
        "(default: throughput)",
    )
    parser.add_argument(
        "--finish-in", metavar="DURATION", help="when the job is to be done: 30m, 8h, 2d, 1h30m (a deadline)"
    )


def objective_of(arguments: argparse.Namespace) -> Objective:
    """The objective that `add_objective`'s flags describe."""
    if arguments.finish_in is None:
        if arguments.objective == "deadline":
            raise UserError("--objective deadline: by when? give --finish-in, such as --finish-in 8h")
        return Objective(kind=arguments.objective or "throughput")
    if arguments.objective not in (None, "deadline"):
        raise UserError(
            f"--finish-in is a deadline and --objective is {arguments.objective}; leave out one of them"
        )
    return Objective(kind="deadline", finish_in_s=parse_duration(arguments.finish_in))


def refuse_stages(objective: Objective) -> None:
    """A UserError where a pipeline is asked for and not its throughput."""
    if objective.kind != "throughput":
        flag = "--finish-in" if objective.kind == "deadline" else f"--objective {objective.kind}"
        raise UserError(f"{flag} is for plans without stages; leave out --stages and --hosts, or {flag}")


def seek(
    objective: Objective, problem: Problem, request: Request, inputs: Inputs, report: Reporter, keep: Keeper
) -> tuple[Plan, list[str]]:
    """The best plan, and what there is to say of it; a UserError where none fits, or none is done in time.

    `keep` is given every plan that was placed on the way; the problem is that of the inputs.
    """
    if objective.kind == "latency":
        plan = _found(quickest(problem, request, report, keep), problem, request)
        return plan, [_latency_note(plan)]
    if objective.kind == "throughput":
        return _found(search(problem, request, report, keep=keep), problem, request), []
    from planner.commands.in_time import deadline_of, in_time  # noqa: PLC0415  what other searches do without

    deadline = deadline_of(objective.finish_in_s, problem, request, inputs)
    return in_time(deadline, _found(search(problem, request, report, keep=keep), problem, request), report)


def _found(plan: Plan | None, problem: Problem, request: Request) -> Plan:
    if plan is None:
        raise UserError(explain_shortage(problem, request))
    return plan


def _latency_note(plan: Plan) -> str:
    longest, size = " of the longest prompts" * bool(plan.workload.lengths), plan.policy.block_size
    smaller = "no smaller one takes noticeably less" if size > 1 else "any larger one takes longer"
    seconds = format_seconds(latency_s(plan))
    return f"A block of {size}{longest} takes {seconds}, and {smaller}; --frontier shows what more throughput costs"
