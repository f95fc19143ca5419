"""The command `planner`: search, estimate, simulate, calibrate."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from hwprofiles.errors import UserError, run_cli
from hwprofiles.files import write_atomically
from hwprofiles.host import mismatch
from hwprofiles.profile import Dtype, load_profile
from hwprofiles.terminal import make_console
from hwprofiles.units import parse_bytes
from hwprofiles.yaml_io import to_plain
from planner.advise import estimate
from planner.machine import Caps
from planner.model import load_model
from planner.plan import Plan, load_plan
from planner.policy import Bits, Policy, Split
from planner.pricing import price
from planner.problem import Problem, make_problem
from planner.render import four_bit_note, plan_view
from planner.render_simulation import simulation_view
from planner.report import load_report
from planner.simulate import MAX_TASKS, NUM_TOKENS, rates_for, representative, simulate
from planner.trace import TraceWriter, write_prediction
from planner.workload import Workload

_SIZE_FLAGS = ("--gpu-mem", "--cpu-mem", "--disk")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for a user's mistake, 130 when interrupted."""
    arguments = _parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
    commands = {"search": _search, "estimate": _estimate, "simulate": _simulate, "calibrate": _calibrate}
    return run_cli(lambda: commands[arguments.command](arguments))


def _joined(argv: list[str]) -> list[str]:
    """Negative sizes as one word with their flag, so that they are not taken for flags themselves."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] in _SIZE_FLAGS and word[:1] == "-" and word[1:2].isdecimal():
            joined[-1] = f"{joined[-1]}={word}"
        else:
            joined.append(word)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="planner", description="Find how to run a language model that does not fit its GPU."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    search = commands.add_parser("search", help="the policy with the highest throughput")
    _add_problem(search)
    search.add_argument(
        "--weight-bits", choices=("16", "4", "auto"), default="16", help="default: 16, lossless"
    )
    search.add_argument("--kv-bits", choices=("16", "4", "auto"), default="16", help="default: 16, lossless")
    search.add_argument(
        "--cpu-attention",
        choices=("on", "off", "auto"),
        default="auto",
        help="attend cache rows that are off the GPU on the CPU in decode (default: where it pays)",
    )
    search.add_argument(
        "--max-latency", type=float, metavar="SECONDS", help="limit on prefill + decode of a block"
    )
    _add_output(search)
    given = commands.add_parser("estimate", help="what a given policy would cost, and whether it fits")
    _add_problem(given)
    given.add_argument("--weight-bits", choices=("16", "4"), default="16", help="default: 16, lossless")
    given.add_argument("--kv-bits", choices=("16", "4"), default="16", help="default: 16, lossless")
    given.add_argument(
        "--cpu-attention",
        choices=("on", "off"),
        default="off",
        help="attend all cache rows that are off the GPU on the CPU in decode (default: off)",
    )
    given.add_argument(
        "--percent",
        type=float,
        nargs=6,
        required=True,
        metavar=("WG", "WC", "CG", "CC", "AG", "AC"),
        help="percent of weights, cache and activations on gpu and on cpu; the rest is on disk",
    )
    given.add_argument(
        "--gpu-batch-size", type=int, required=True, metavar="B", help="sequences computed together"
    )
    given.add_argument(
        "--num-gpu-batches", type=int, required=True, metavar="N", help="gpu batches of a block"
    )
    _add_output(given)
    played = commands.add_parser("simulate", help="play a plan's schedule task by task against a profile")
    played.add_argument("plan", type=Path, metavar="PLAN.YAML", help="what `planner search -o` has written")
    played.add_argument("--hw", required=True, metavar="NAME-OR-PATH", help="hardware profile")
    played.add_argument(
        "--trace", type=Path, metavar="FILE", help="write the tasks as a Chrome/Perfetto trace (JSON)"
    )
    played.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="decode passes to play beside the first and the last; the others are interpolated "
        f"(default: all, or {NUM_TOKENS} where a block has more than {MAX_TASKS} tasks)",
    )
    learn = commands.add_parser("calibrate", help="fit a profile's rates to the reports of runs")
    learn.add_argument("--hw", required=True, metavar="NAME-OR-PATH", help="hardware profile")
    learn.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help="report.json of a run")
    learn.add_argument(
        "-o", "--output", type=Path, required=True, metavar="HW.YAML", help="calibrated profile to write"
    )
    learn.add_argument("--force", action="store_true", help="take reports of another host too")
    return parser


def _add_problem(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="NAME-OR-DIR", help="known name, config.json or checkpoint"
    )
    parser.add_argument("--hw", required=True, metavar="NAME-OR-PATH", help="hardware profile")
    parser.add_argument(
        "--dtype", choices=(*get_args(Dtype), "auto"), default="auto", help="default: auto, the checkpoint's"
    )
    parser.add_argument("--prompt-len", type=int, default=512, metavar="TOKENS", help="default: 512")
    parser.add_argument("--gen-len", type=int, default=32, metavar="TOKENS", help="default: 32")
    parser.add_argument(
        "--num-prompts",
        type=int,
        metavar="N",
        help="prompts in all (default: as many as the best block wants)",
    )
    for tier, flag, what in (
        ("gpu", "--gpu-mem", "GPU memory, such as 16GB"),
        ("cpu", "--cpu-mem", "host memory that the whole process may use"),
        ("disk", "--disk", "disk space"),
    ):
        parser.add_argument(
            flag, dest=f"{tier}_bytes", metavar="SIZE", help=f"cap on {what} (default: all there is)"
        )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="PLAN.YAML", help="write the plan to this file")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON and nothing else")


def _search(arguments: argparse.Namespace) -> int:
    from planner.candidate import Request  # noqa: PLC0415  the LP solver, which other commands do without
    from planner.search import search  # noqa: PLC0415
    from planner.shortage import explain_shortage  # noqa: PLC0415

    problem = _problem(arguments)
    request = Request(
        weight_bits=arguments.weight_bits,
        kv_bits=arguments.kv_bits,
        cpu_attention=arguments.cpu_attention,
        max_latency_s=arguments.max_latency,
    )
    with _progress() as report:
        plan = search(problem, request, report)
        if plan is None:
            raise UserError(explain_shortage(problem, request))
        notes = []
        if not arguments.json and (request.weight_bits, request.kv_bits) == ("16", "16"):
            report("what 4 bits would bring")
            four_bit = search(problem, replace(request, weight_bits="4", kv_bits="4"), num_finalists=1)
            notes.append(four_bit_note(plan, four_bit))
    return _deliver(plan, arguments, *notes)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Shows on stderr, where a person watches, what the search is at."""
    console = make_console(stderr=True)
    with console.status("searching") as status:
        yield status.update


def _estimate(arguments: argparse.Namespace) -> int:
    problem = _problem(arguments)
    wg, wc, cg, cc, ag, ac = arguments.percent
    policy = Policy(
        gpu_batch_size=arguments.gpu_batch_size,
        num_gpu_batches=arguments.num_gpu_batches,
        weights=_split("weights", wg, wc),
        cache=_split("cache", cg, cc),
        activations=_split("activations", ag, ac),
        weight_bits=_bits(arguments.weight_bits),
        kv_bits=_bits(arguments.kv_bits),
        cpu_attention=1.0 if arguments.cpu_attention == "on" else 0.0,
        prefill_rows=problem.prefill_rows(arguments.gpu_batch_size),
        io_threads=problem.rates.io_threads,
        attention_threads=problem.rates.attention_threads,
    )
    return _deliver(estimate(problem, policy), arguments)


def _simulate(arguments: argparse.Namespace) -> int:
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


def _calibrate(arguments: argparse.Namespace) -> int:
    from planner.calibrate import calibrate  # noqa: PLC0415  scipy, which other commands do without
    from planner.render_calibration import calibration_view  # noqa: PLC0415

    reports = [load_report(path) for path in arguments.reports]
    outcome = calibrate(load_profile(arguments.hw), reports, force=arguments.force)
    write_atomically(arguments.output, outcome.profile.to_yaml())
    console = make_console()
    console.print(calibration_view(outcome))
    console.print(f"calibrated profile written to {arguments.output}")
    return 0


def _problem(arguments: argparse.Namespace) -> Problem:
    profile = load_profile(arguments.hw)
    dtype: Dtype | None = None if arguments.dtype == "auto" else arguments.dtype
    workload = Workload(
        prompt_len=arguments.prompt_len, gen_len=arguments.gen_len, num_prompts=arguments.num_prompts
    )
    caps = Caps(
        gpu_bytes=_size(arguments.gpu_bytes),
        cpu_bytes=_size(arguments.cpu_bytes),
        disk_bytes=_size(arguments.disk_bytes),
    )
    problem = make_problem(load_model(arguments.model, dtype), workload, profile, caps)
    warning = mismatch(profile)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    return problem


def _size(text: str | None) -> int | None:
    return None if text is None else parse_bytes(text)


def _bits(text: str) -> Bits:
    return 4 if text == "4" else 16


def _split(name: str, gpu: float, cpu: float) -> Split:
    """A split from two percents; what is left is on disk."""
    if gpu < 0 or cpu < 0 or gpu + cpu > 100 + 1e-6:
        raise UserError(
            f"--percent for {name} is {gpu:g} on gpu and {cpu:g} on cpu, {gpu + cpu:g} together; "
            "each must be at least 0 and both together at most 100"
        )
    return Split(gpu=gpu / 100, cpu=cpu / 100, disk=max(0.0, 1 - (gpu + cpu) / 100))


def _deliver(plan: Plan, arguments: argparse.Namespace, *notes: str) -> int:
    if arguments.output:
        write_atomically(arguments.output, plan.to_yaml())
    if arguments.json:
        print(json.dumps(to_plain(plan), indent=1))
        return 0
    console = make_console()
    console.print(plan_view(plan, *notes))
    if arguments.output:
        console.print(f"plan written to {arguments.output}")
    return 0
