"""What `executor run` and `executor verify` do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from executor.binding import bind
from executor.console import ConsoleReporter
from executor.hub import resolve_model
from executor.job import JobOptions, compute_device, end_of_sequence_ids, run_job
from executor.loading import ConsoleLoading, SilentLoading
from executor.progress import SilentReporter
from executor.rank_group import rank_group
from executor.ranks import ALONE, Ranks
from executor.render import report_table
from executor.replan import Replanner, check_can_replan
from executor.run_flags import env_of, same_flags
from executor.sampling import Completion
from executor.trace import TraceOptions
from executor.verdict import verdict_lines
from executor.verify import compare, reference_model
from hwprofiles.files import write_atomically
from hwprofiles.host import current_fingerprint
from hwprofiles.profile import load_profile
from hwprofiles.terminal import make_console
from planner.layout import DTYPE_BYTES
from planner.learn import learn
from planner.plan import Plan
from planner.render_calibration import calibration_view
from planner.report import RunReport, report_json

_DIFFERENT_EXIT = 1


def run(arguments: argparse.Namespace, plan: Plan) -> int:
    """executor run."""
    console = make_console(stderr=True)
    options = _options(arguments, output=arguments.output, trace=_trace(arguments))
    if arguments.replan:
        check_can_replan(plan)
        options = replace(options, ask=Replanner(console.print))
    with ranks_of(plan, arguments, console) as ranks:
        report = _run(plan, console, options, ranks)
    if ranks.rank:
        return 0
    if arguments.report:
        write_atomically(arguments.report, report_json(report))
    make_console().print(report_table(report))
    if arguments.calibrate:
        _calibrate(arguments.calibrate, report)
    return 0


@contextmanager
def ranks_of(plan: Plan, arguments: argparse.Namespace, console: Console) -> Iterator[Ranks]:
    """All ranks of the plan, this one bound to its processors; warnings of what is not as it was planned."""
    env = env_of(plan)
    _warn_of_other_host(plan, env.rank if env else 0, console)
    if env is None:
        yield ALONE
        return
    if env.rank < len(plan.stages):
        for warning in bind(plan.stages[env.rank], env.rank, widen=env.by_mpi):
            console.print(warning, style="yellow", soft_wrap=True)
    with rank_group(
        env,
        len(plan.stages),
        plan=plan.digest(),
        flags=same_flags(arguments),
        nccl_device=_nccl_device(plan, env.rank),
        wait_s=arguments.wait_for_ranks,
    ) as group:
        yield group


def _nccl_device(plan: Plan, rank: int) -> torch.device | None:
    """This rank's GPU, where hidden states pass from GPU to GPU; all ranks compute on GPUs, or none."""
    device = compute_device(plan, rank) if plan.policy.comm_device == "cuda" else None
    return device if device and device.type == "cuda" else None


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


def verify(arguments: argparse.Namespace, plan: Plan) -> int:
    """executor verify."""
    console = make_console(stderr=True)
    options, completions = _options(arguments, first=arguments.num_prompts), list[Completion]()
    with ranks_of(plan, arguments, console) as ranks:
        _run(plan, console, options, ranks, completions.extend)
    if ranks.rank:
        return 0
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
        return None
    profile = load_profile(arguments.hw) if arguments.hw else None
    return TraceOptions(path=arguments.trace, num_blocks=arguments.trace_blocks, profile=profile)


def _run(
    plan: Plan,
    console: Console,
    options: JobOptions,
    ranks: Ranks,
    sink: Callable[[Sequence[Completion]], None] = lambda _: None,
) -> RunReport:
    """The first rank shows how far all of them are."""
    if ranks.rank:
        return run_job(plan, options, SilentReporter(), SilentLoading(), sink, ranks)
    own = plan.of_rank(0)
    loading = ConsoleLoading(own.model.spec().weight_bytes(DTYPE_BYTES[plan.model.dtype]), console)
    return run_job(plan, options, ConsoleReporter(console), loading, sink, ranks)


def _warn_of_other_host(plan: Plan, rank: int, console: Console) -> None:
    hardware = plan.stages[rank].hardware if rank < len(plan.stages) else plan.hardware
    if hardware.fingerprint and hardware.fingerprint != current_fingerprint():
        console.print(
            f"warning: the plan was made for {hardware.name}, measured on another kind of host; "
            "its prediction does not hold here",
            style="yellow",
        )
