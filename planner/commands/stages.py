"""The flags of pipelines, which search and estimate share, and what the two do where there are stages."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

from hwprofiles.errors import UserError
from hwprofiles.profile import load_profile
from planner.commands.options import inputs_of
from planner.estimate_stages import estimate_stages
from planner.plan import Plan
from planner.policy import CommDevice, Policy
from planner.problem import Problem, make_problem
from planner.render import four_bit_note
from planner.render_stages import stages_note
from planner.request import Request
from planner.search import search
from planner.search_stages import Cluster, best_of, explain_stages, search_stages, stage_options
from planner.shortage import explain_shortage

Reporter = Callable[[str], None]


def add_stages(parser: argparse.ArgumentParser, *, fixed: bool) -> None:
    """Stages, hosts and how hidden states travel; with a `fixed` policy also its waves."""
    kinds = "N" if fixed else "N|auto"
    what = "ranks that share the layers, each with a GPU of its own where the host has any (default: 1)"
    parser.add_argument("--stages", default="1", metavar=kinds, help=what)
    if fixed:
        parser.add_argument(
            "--num-waves",
            type=int,
            metavar="W",
            help="parts of the block that follow one another through the stages (default: as many as stages)",
        )
    parser.add_argument(
        "--hosts",
        nargs="+",
        default=[],
        metavar="HW",
        help="hardware profiles of further hosts, in the order of their ranks",
    )
    parser.add_argument(
        "--comm-device",
        choices=("cpu", "cuda", "auto"),
        default="auto",
        help="hidden states travel through host memory, or from GPU to GPU (default: where that was measured)",
    )


def has_stages(arguments: argparse.Namespace) -> bool:
    """Whether a pipeline is asked for."""
    return str(arguments.stages) != "1" or bool(arguments.hosts)


def searched(arguments: argparse.Namespace, request: Request, report: Reporter) -> tuple[Plan, list[str]]:
    """The best plan for the number of stages that is asked for, and what to say of it."""
    if arguments.frontier:
        raise UserError("--frontier draws plans without stages; leave out --stages")
    cluster = _cluster(arguments)
    counts = stage_options(cluster) if arguments.stages == "auto" else [_number(arguments)]
    cluster.staged(counts[0])  # refuses what the hosts have no places for
    found = {count: _search(cluster, count, request, report) for count in counts}
    plans = {count: plan for count, plan in found.items() if plan}
    if not plans:
        raise UserError(_explain(cluster, counts[-1], request))
    best = best_of([*plans.values()])
    notes = [stages_note(plans, best)] if arguments.stages == "auto" else []
    if not arguments.json and (request.weight_bits, request.kv_bits) == ("16", "16"):
        report("what 4 bits would bring")
        lossy = replace(request, weight_bits="4", kv_bits="4")
        notes.append(four_bit_note(best, _search(cluster, best.num_ranks, lossy, report)))
    return best, notes


def estimated(
    arguments: argparse.Namespace, policy_of: Callable[[Problem, argparse.Namespace], Policy]
) -> Plan:
    """A given policy on all stages, the layers divided among them by time."""
    cluster, count = _cluster(arguments), _number(arguments)
    waves = arguments.num_waves or min(count, arguments.num_gpu_batches)
    return estimate_stages(cluster, count, waves, lambda problem: policy_of(problem, arguments))


def _cluster(arguments: argparse.Namespace) -> Cluster:
    inputs = inputs_of(arguments)
    hosts = (inputs.profile, *(load_profile(name) for name in arguments.hosts))
    comm_device: CommDevice = arguments.comm_device
    if arguments.comm_device == "auto":
        gpus = inputs.profile.gpus
        is_direct = len(hosts) == 1 and bool(gpus) and not gpus[0].emulated
        comm_device = "cuda" if is_direct and inputs.profile.gpu_to_gpu_bytes_per_s else "cpu"
    return Cluster(
        model=inputs.model, workload=inputs.workload, hosts=hosts, caps=inputs.caps, comm_device=comm_device
    )


def _number(arguments: argparse.Namespace) -> int:
    text = str(arguments.stages)
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--stages is {text!r}; give a number of ranks from 1")
    return int(text)


def _search(cluster: Cluster, count: int, request: Request, report: Reporter) -> Plan | None:
    if count == 1:
        return search(_alone(cluster), request, report)
    return search_stages(cluster, count, request, report)


def _explain(cluster: Cluster, count: int, request: Request) -> str:
    if count == 1:
        return explain_shortage(_alone(cluster), request)
    return explain_stages(cluster, count, request)


def _alone(cluster: Cluster) -> Problem:
    return make_problem(cluster.model, cluster.workload, cluster.hosts[0], cluster.caps)
