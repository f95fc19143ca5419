"""What search and estimate do where there are stages. Plans without any do without this module."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

from hwprofiles.errors import UserError
from hwprofiles.profile import load_profile
from planner.cluster import Cluster
from planner.commands.options import inputs_of
from planner.estimate_stages import estimate_stages
from planner.plan import Plan
from planner.policy import CommDevice, Policy
from planner.problem import Problem, make_problem
from planner.render import four_bit_note
from planner.render_stages import stages_note
from planner.request import Request
from planner.search import search
from planner.search_stages import best_of, explain_stages, search_stages, stage_options, stages_between
from planner.shortage import explain_shortage

Reporter = Callable[[str], None]


def searched(arguments: argparse.Namespace, request: Request, report: Reporter) -> tuple[Plan, list[str]]:
    """The best plan for the number of stages that is asked for, and what to say of it."""
    if arguments.frontier:
        raise UserError("--frontier draws plans without stages; leave out --stages")
    cluster = _cluster(arguments)
    counts = stage_options(cluster) if arguments.stages == "auto" else [_number(arguments)]
    cluster.staged(counts[0])  # refuses what the hosts have no places for
    found = _searches(cluster, counts, request, report)
    plans = {count: plan for count, plan in found.items() if plan}
    if arguments.stages == "auto" and (more := stages_between(cluster, plans)):
        found = _searches(cluster, more, request, report)
        plans = dict(sorted({**plans, **{count: plan for count, plan in found.items() if plan}}.items()))
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


def _searches(
    cluster: Cluster, counts: Sequence[int], request: Request, report: Reporter
) -> dict[int, Plan | None]:
    """By number of stages; several at once, in processes of their own, where there are cores for it."""
    workers = min(len(counts), len(os.sched_getaffinity(0)))
    if workers == 1:
        return {count: _search(cluster, count, request, report) for count in counts}
    report(f"{', '.join(map(str, counts))} stages: searching {workers} numbers at once")
    context = multiprocessing.get_context("fork")  # what is imported is there already
    ignores = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=ignores) as pool:
        with (
            warnings.catch_warnings()
        ):  # Python 3.12 warns of other threads; no lock that they hold is asked for
            warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*multi-threaded")
            longest_first = sorted(counts, reverse=True)
            tasks = {count: pool.submit(_search, cluster, count, request, _silent) for count in longest_first}
        try:
            return {count: tasks[count].result() for count in counts}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _silent(step: str) -> None:
    """A process of its own says nothing: the progress line is the caller's."""


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
