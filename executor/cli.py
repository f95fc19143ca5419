"""executor run | verify | report."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rich.console import Console

from executor.console import ConsoleReporter
from executor.hub import resolve_model
from executor.job import JobOptions, compute_device, end_of_sequence_ids, run_job
from executor.loading import ConsoleLoading
from executor.render import report_table, verdict_lines
from executor.sampling import Completion
from executor.verify import compare, reference_model
from hwprofiles.errors import UserError, run_cli
from hwprofiles.host import current_fingerprint
from hwprofiles.files import write_atomically
from planner.layout import DTYPE_BYTES
from planner.plan import Plan, load_plan
from planner.report import RunReport, load_report, report_json

DIFFERENT_EXIT = 1
VERIFY_PROMPTS = 8


def main(argv: list[str] | None = None) -> int:
    """The command `executor`; 0 on success, 1 when verify finds a difference, 2 for a user's mistake."""
    arguments = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    body: Callable[[argparse.Namespace], int] = arguments.body
    return run_cli(lambda: body(arguments))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def build_parser() -> argparse.ArgumentParser:
    """All flags, with their units and defaults."""
    parser = argparse.ArgumentParser(prog="executor", description="Run a plan that `planner search` has written.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run prompts through a plan")
    run.set_defaults(body=run_command)
    _plan_arguments(run)
    run.add_argument("--dummy-weights", action="store_true", help="random weights of the model's shapes")
    run.add_argument("--output", type=Path, metavar="FILE", help="result lines (JSONL), appended block by block; "
                     "an existing file is resumed")  # fmt: skip
    run.add_argument("--report", type=Path, metavar="FILE", help="write report.json here")
    verify = commands.add_parser("verify", help="compare a plan's tokens with transformers' own generate")
    verify.set_defaults(body=verify_command)
    _plan_arguments(verify)
    verify.add_argument("--num-prompts", type=int, default=VERIFY_PROMPTS, metavar="N",
                        help=f"prompts to compare (default {VERIFY_PROMPTS})")  # fmt: skip
    report = commands.add_parser("report", help="show a run's report")
    report.set_defaults(body=report_command)
    report.add_argument("report", type=Path, help="report.json of a run")
    return parser


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, help="plan.yaml")
    parser.add_argument("--model-path", metavar="DIR", help="checkpoint directory (safetensors), or a hub id")
    parser.add_argument("--input", type=Path, metavar="FILE", help="prompts, JSONL: OpenAI batch lines or "
                        '{"prompt": ...}; without it, synthetic prompts of the workload\'s lengths')  # fmt: skip
    parser.add_argument("--offload-dir", type=Path, metavar="DIR", default=Path(tempfile.gettempdir()),
                        help=f"where the disk tier lives (default {tempfile.gettempdir()})")  # fmt: skip
    parser.add_argument("--no-overlap", action="store_true", help="one task after the other (for comparison)")


def run_command(arguments: argparse.Namespace) -> int:
    """executor run."""
    if (arguments.model_path is None) == (not arguments.dummy_weights):
        raise UserError("give either --model-path DIR or --dummy-weights")
    plan, console = load_plan(arguments.plan), Console(stderr=True)
    _warn_of_other_host(plan, console)
    report = _run(plan, arguments, console, _options(arguments, arguments.output, None))
    if arguments.report:
        write_atomically(arguments.report, report_json(report))
    Console().print(report_table(report))
    return 0


def verify_command(arguments: argparse.Namespace) -> int:
    """executor verify."""
    if arguments.model_path is None:
        raise UserError("verify compares with a real model: give --model-path DIR")
    if arguments.num_prompts < 1:
        raise UserError(f"--num-prompts is {arguments.num_prompts}; compare at least one prompt")
    plan, console = load_plan(arguments.plan), Console(stderr=True)
    completions: list[Completion] = []
    options = _options(arguments, None, arguments.num_prompts)
    _run(plan, arguments, console, options, completions.extend)
    assert options.model_dir is not None
    model = reference_model(options.model_dir, plan.model.dtype, compute_device(plan))
    verdict = compare(model, plan.model.dtype, completions, end_of_sequence_ids(options.model_dir))
    for line in verdict_lines(verdict, is_lossy=4 in (plan.policy.weight_bits, plan.policy.kv_bits)):
        print(line)
    return 0 if verdict.is_same else DIFFERENT_EXIT


def report_command(arguments: argparse.Namespace) -> int:
    """executor report."""
    Console().print(report_table(load_report(arguments.report)))
    return 0


def _options(arguments: argparse.Namespace, output: Path | None, first: int | None) -> JobOptions:
    return JobOptions(
        model_dir=resolve_model(arguments.model_path) if arguments.model_path else None,
        input_path=arguments.input,
        output_path=output,
        offload_dir=arguments.offload_dir,
        overlap=not arguments.no_overlap,
        first=first,
    )


def _run(
    plan: Plan,
    arguments: argparse.Namespace,
    console: Console,
    options: JobOptions,
    sink: Callable[[list[Completion]], None] = lambda _: None,
) -> RunReport:
    loading = ConsoleLoading(plan.model.spec().weight_bytes(DTYPE_BYTES[plan.model.dtype]), console)
    return run_job(plan, options, ConsoleReporter(console), loading, sink)


def _warn_of_other_host(plan: Plan, console: Console) -> None:
    if plan.hardware.fingerprint and plan.hardware.fingerprint != current_fingerprint():
        console.print(
            f"warning: the plan was made for {plan.hardware.name}, measured on another kind of host; "
            "its prediction does not hold here", style="yellow",
        )  # fmt: skip
