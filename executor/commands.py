"""What `executor run` and `executor verify` do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from executor.console import ConsoleReporter
from executor.hub import resolve_model
from executor.job import JobOptions, compute_device, end_of_sequence_ids, run_job
from executor.loading import ConsoleLoading
from executor.render import report_table
from executor.replan import Replanner, check_can_replan
from executor.sampling import Completion
from executor.trace import TraceOptions
from executor.verdict import verdict_lines
from executor.verify import compare, reference_model
from hwprofiles.errors import UserError
from hwprofiles.files import check_writable, write_atomically
from hwprofiles.host import current_fingerprint
from hwprofiles.profile import load_profile
from hwprofiles.terminal import make_console
from planner.kept_reports import check_can_learn
from planner.layout import DTYPE_BYTES
from planner.learn import learn
from planner.plan import Plan, load_plan
from planner.render_calibration import calibration_view
from planner.report import RunReport, report_json

_DIFFERENT_EXIT = 1


def run(arguments: argparse.Namespace) -> int:
    """executor run."""
    if (arguments.model_path is None) == (not arguments.dummy_weights):
        raise UserError("give either --model-path DIR or --dummy-weights")
    if arguments.report:
        check_writable(arguments.report)
    plan, console = load_plan(arguments.plan), make_console(stderr=True)
    _warn_of_other_host(plan, console)
    if arguments.calibrate:
        check_can_learn(arguments.calibrate, plan, current_fingerprint())
    options = _options(arguments, output=arguments.output, trace=_trace(arguments))
    if arguments.replan:
        check_can_replan(plan)
        options = replace(options, ask=Replanner(console.print))
    report = _run(plan, console, options)
    if arguments.report:
        write_atomically(arguments.report, report_json(report))
    make_console().print(report_table(report))
    if arguments.calibrate:
        _calibrate(arguments.calibrate, report)
    return 0


def _calibrate(path: Path, report: RunReport) -> None:
    """Fit the profile to this run too, and show what that changed."""
    console = make_console()
    if not report.num_blocks:
        console.print(f"nothing was run; {path} stays as it was")
        return
    learned = learn(path, report)
    console.print(calibration_view(learned.outcome))
    for reason in learned.left_out:
        console.print(f"left out: {reason}")
    console.print(f"report kept as {learned.kept_at}; calibrated profile written to {path}")


def verify(arguments: argparse.Namespace) -> int:
    """executor verify."""
    if arguments.model_path is None:
        raise UserError("verify compares with a real model: give --model-path DIR")
    if arguments.num_prompts < 1:
        raise UserError(f"--num-prompts is {arguments.num_prompts}; compare at least one prompt")
    plan, console = load_plan(arguments.plan), make_console(stderr=True)
    options, completions = _options(arguments, first=arguments.num_prompts), list[Completion]()
    _run(plan, console, options, completions.extend)
    assert options.model_dir is not None
    model = reference_model(options.model_dir, plan.model, compute_device(plan))
    verdict = compare(model, plan.model.dtype, completions, end_of_sequence_ids(options.model_dir))
    for line in verdict_lines(verdict, is_lossy=4 in (plan.policy.weight_bits, plan.policy.kv_bits)):
        print(line)
    return 0 if verdict.is_same else _DIFFERENT_EXIT


def _options(
    arguments: argparse.Namespace,
    *,
    output: Path | None = None,
    first: int | None = None,
    trace: TraceOptions | None = None,
) -> JobOptions:
    return JobOptions(
        model_dir=resolve_model(arguments.model_path) if arguments.model_path else None,
        input_path=arguments.input,
        output_path=output,
        offload_dir=arguments.offload_dir,
        overlap=not arguments.no_overlap,
        first=first,
        trace=trace,
    )


def _trace(arguments: argparse.Namespace) -> TraceOptions | None:
    if not arguments.trace:
        if arguments.hw:
            raise UserError("--hw predicts the lanes of a trace; give --trace FILE with it")
        return None
    check_writable(arguments.trace)
    if arguments.trace_blocks < 1:
        raise UserError(f"--trace-blocks is {arguments.trace_blocks}; record at least one block")
    profile = load_profile(arguments.hw) if arguments.hw else None
    return TraceOptions(path=arguments.trace, num_blocks=arguments.trace_blocks, profile=profile)


def _run(
    plan: Plan,
    console: Console,
    options: JobOptions,
    sink: Callable[[Sequence[Completion]], None] = lambda _: None,
) -> RunReport:
    loading = ConsoleLoading(plan.model.spec().weight_bytes(DTYPE_BYTES[plan.model.dtype]), console)
    return run_job(plan, options, ConsoleReporter(console), loading, sink)


def _warn_of_other_host(plan: Plan, console: Console) -> None:
    if plan.hardware.fingerprint and plan.hardware.fingerprint != current_fingerprint():
        console.print(
            f"warning: the plan was made for {plan.hardware.name}, measured on another kind of host; "
            "its prediction does not hold here",
            style="yellow",
        )
