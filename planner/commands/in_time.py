"""What a search with a deadline does, and says of the plan it finds. Other searches do without this module."""

from __future__ import annotations

from hwprofiles.errors import UserError
from hwprofiles.units import MIB, format_bytes, format_duration
from planner.commands.options import Inputs
from planner.deadline import Deadline, Finish, explain_lateness, finish_in, job_s
from planner.plan import Plan
from planner.policy import Tier
from planner.problem import Problem
from planner.request import Request
from planner.search import Reporter


def deadline_of(finish_in_s: float, problem: Problem, request: Request, inputs: Inputs) -> Deadline:
    """When the job of a search's inputs is to be done; a UserError where they describe no job."""
    return Deadline(
        problem=problem,
        request=request,
        profile=inputs.profile,
        caps=inputs.caps,
        finish_in_s=finish_in_s,
    )


def in_time(deadline: Deadline, fastest: Plan, report: Reporter) -> tuple[Plan, list[str]]:
    """The plan with the least memory that is done in time, and notes; a UserError where even the fastest is late."""
    finish = finish_in(deadline, fastest, report)
    if finish is None:
        raise UserError(explain_lateness(deadline, fastest, report))
    return finish.plan, _notes(finish, deadline)


def _notes(finish: Finish, deadline: Deadline) -> list[str]:
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
