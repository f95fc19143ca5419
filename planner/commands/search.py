"""`planner search`: the policy with the highest throughput, the least latency, or the least memory for a deadline."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from planner.commands.objective import add_objective, objective_of, refuse_stages, seek
from planner.commands.options import add_output, add_problem, inputs_of
from planner.commands.output import deliver, progress
from planner.commands.stages import add_stages, has_stages
from planner.plan import Plan
from planner.problem import make_problem
from planner.render import four_bit_note
from planner.request import Request
from planner.search import glance


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What is left to the search."""
    add_problem(parser)
    parser.add_argument(
        "--weight-bits", choices=("16", "4", "auto"), default="16", help="default: 16, lossless"
    )
    parser.add_argument("--kv-bits", choices=("16", "4", "auto"), default="16", help="default: 16, lossless")
    parser.add_argument(
        "--cpu-attention",
        choices=("on", "off", "auto"),
        default="auto",
        help="attend cache rows that are off the GPU on the CPU in decode (default: where it pays)",
    )
    parser.add_argument(
        "--max-latency", type=float, metavar="SECONDS", help="limit on prefill + decode of a block"
    )
    parser.add_argument(
        "--frontier",
        type=Path,
        metavar="FILE",
        help="write the plans between least latency and highest throughput: .html (to hover), .png or .json",
    )
    add_stages(parser, fixed=False)
    add_objective(parser)
    add_output(parser)


def run(arguments: argparse.Namespace) -> int:
    """Search, and say what 4 bits would bring to a lossless plan."""
    if arguments.frontier:
        from planner.frontier_file import check_path  # noqa: PLC0415  what other searches do without

        check_path(arguments.frontier)
    objective = objective_of(arguments)
    request = Request(
        weight_bits=arguments.weight_bits,
        kv_bits=arguments.kv_bits,
        cpu_attention=arguments.cpu_attention,
        max_latency_s=arguments.max_latency,
    )
    if has_stages(arguments):
        from planner.commands.pipelines import searched  # noqa: PLC0415  what other plans do without

        refuse_stages(objective)
        with progress() as report:
            plan, notes = searched(arguments, request, report)
        return deliver(plan, arguments, *notes)
    inputs = inputs_of(arguments)
    problem = make_problem(inputs.model, inputs.workload, inputs.profile, inputs.caps)
    realised: list[Plan] = []
    with progress() as report:
        best, notes = seek(objective, problem, request, inputs, report, realised.append)
        is_lossless = (request.weight_bits, request.kv_bits) == ("16", "16")
        if objective.kind == "throughput" and is_lossless and not arguments.json:
            report("what 4 bits would bring")
            four_bit = glance(problem, replace(request, weight_bits="4", kv_bits="4"))
            notes.append(four_bit_note(best, four_bit))
        if arguments.frontier:
            from planner.frontier import frontier  # noqa: PLC0415
            from planner.frontier_file import write  # noqa: PLC0415

            write(arguments.frontier, frontier(problem, request, best, realised, report))
            notes.append(f"frontier written to {arguments.frontier}")
    return deliver(best, arguments, *notes)
