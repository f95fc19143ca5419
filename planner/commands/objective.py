"""Flags that say what is sought of a plan, and the search for it: throughput, latency, or a job done in time."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal, get_args

from hwprofiles.errors import UserError
from hwprofiles.units import MIB, format_bytes, format_duration, format_seconds, parse_duration
from planner.commands.options import Inputs
from planner.deadline import Deadline, Finish, explain_lateness, finish_in, job_s
from planner.latency import latency_s, quickest
from planner.plan import Plan
from planner.policy import Tier
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
    deadline = Deadline(
        problem=problem,
        request=request,
        profile=inputs.profile,
        caps=inputs.caps,
        finish_in_s=objective.finish_in_s,
    )
    fastest = _found(search(problem, request, report, keep=keep), problem, request)
    finish = finish_in(deadline, fastest, report)
    if finish is None:
        raise UserError(explain_lateness(deadline, fastest, report))
    return finish.plan, _finish_notes(finish, deadline)


def _found(plan: Plan | None, problem: Problem, request: Request) -> Plan:
    if plan is None:
        raise UserError(explain_shortage(problem, request))
    return plan


def _latency_note(plan: Plan) -> str:
    longest, size = " of the longest prompts" * bool(plan.workload.lengths), plan.policy.block_size
    smaller = "no smaller one takes noticeably less" if size > 1 else "any larger one takes longer"
    seconds = format_seconds(latency_s(plan))
    return f"A block of {size}{longest} takes {seconds}, and {smaller}; --frontier shows what more throughput costs"


def _finish_notes(finish: Finish, deadline: Deadline) -> list[str]:
    """How long of the time given it takes, and the least memory as flags."""
    flags: dict[Tier, str] = {"cpu": "--cpu-mem", "gpu": "--gpu-mem"}
    target = deadline.problem.target
    there = {"cpu": target.cpu_bytes + target.headroom_bytes, "gpu": target.gpu_bytes}
    caps = " ".join(f"{flags[tier]} {num_bytes // MIB}MiB" for tier, num_bytes in finish.least.items())
    of = " and ".join(f"{format_bytes(there[tier])} on {tier}" for tier in finish.least)
    order = ": first as little of the host's as can be, then of the GPU's" * ("gpu" in finish.least)
    return [
        f"In time: {format_duration(job_s(finish.plan))} of the {format_duration(deadline.finish_in_s)} given; "
        f"with all memory it takes {format_duration(job_s(finish.fastest))}",
        f"The least memory that does it is {caps} (of {of}){order}",
    ]
