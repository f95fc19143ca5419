"""The command `executor`: run | verify | report. Its flags; what run and verify do is in commands.py."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from types import FrameType

from executor.rank_env import WAIT_S, is_rank
from executor.render import report_table
from executor.run_flags import check_flags, env_of, plan_of
from hwprofiles.allocation import CUDA_ALLOCATOR
from hwprofiles.errors import run_cli
from hwprofiles.terminal import make_console
from planner.report import load_report

VERIFY_PROMPTS = 8


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 on success, 1 when verify finds a difference, 2 for a user's mistake, 130 interrupted."""
    os.environ.setdefault(*CUDA_ALLOCATOR)  # read when torch first allocates
    words = sys.argv[1:] if argv is None else argv
    arguments = build_parser().parse_args(words)
    signal.signal(signal.SIGTERM, _interrupt)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if not is_rank(os.environ):
        return run_cli(lambda: _run_command(arguments, words))
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # a lost connection is told in one line, not in pages
    try:
        status = run_cli(lambda: _run_command(arguments, words))
    except Exception:
        traceback.print_exc()
        status = 1
    return _leave(status)


def _leave(status: int) -> int:
    """After a failure a rank's threads may wait for messages that never come: the process ends without them."""
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run_command(arguments: argparse.Namespace, words: list[str]) -> int:
    if arguments.command == "report":
        make_console().print(report_table(load_report(arguments.report)))
        return 0
    plan = plan_of(arguments)
    env = env_of(plan)
    check_flags(arguments, plan, env.rank if env else 0)
    if plan.stages and env is None:
        from executor.launch import launch  # noqa: PLC0415  torch, which --help does without

        return launch(plan, words)
    from executor import commands  # noqa: PLC0415  torch and transformers

    return commands.run(arguments, plan) if arguments.command == "run" else commands.verify(arguments, plan)


def build_parser() -> argparse.ArgumentParser:
    """All flags, with their units and defaults."""
    parser = argparse.ArgumentParser(
        prog="executor", description="Run a plan that `planner search` has written."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run prompts through a plan")
    _add_job(run)
    run.add_argument("--dummy-weights", action="store_true", help="random weights of the model's shapes")
    run.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="result lines (JSONL), appended block by block; an existing file is resumed",
    )
    run.add_argument("--report", type=Path, metavar="FILE", help="write report.json here")
    run.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write when each task ran as a Chrome/Perfetto trace (JSON)",
    )
    run.add_argument(
        "--trace-blocks", type=int, default=1, metavar="N", help="blocks to record in the trace (default: 1)"
    )
    run.add_argument(
        "--hw",
        metavar="NAME-OR-PATH",
        help="the plan's hardware profile: predicts the trace's lanes beside it",
    )
    run.add_argument(
        "--replan",
        action="store_true",
        help="after the first block, if it took 15%% more or less than predicted, search again with the rates it "
        "showed, and go on with a plan that is worth loading the weights again",
    )
    run.add_argument(
        "--calibrate",
        type=Path,
        metavar="HW.YAML",
        help="after the run, keep its report in HW.reports beside this profile, fit the profile to all reports there "
        "and write it again",
    )
    verify = commands.add_parser("verify", help="compare a plan's tokens with transformers' own generate")
    _add_job(verify)
    verify.add_argument(
        "--num-prompts",
        type=int,
        default=VERIFY_PROMPTS,
        metavar="N",
        help=f"prompts to compare (default: {VERIFY_PROMPTS})",
    )
    report = commands.add_parser("report", help="show a run's report")
    report.add_argument("report", type=Path, metavar="REPORT.JSON", help="what `run --report` has written")
    return parser


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, metavar="PLAN.YAML", help="what `planner search -o` has written")
    parser.add_argument("--model-path", metavar="DIR", help="checkpoint directory (safetensors), or a hub id")
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help='prompts, JSONL: OpenAI batch lines or {"prompt": ...}; '
        "without it, synthetic prompts of the workload's lengths",
    )
    parser.add_argument(
        "--offload-dir",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()),
        help=f"where the disk tier lives (default: {tempfile.gettempdir()})",
    )
    parser.add_argument(
        "--comm-device",
        choices=("cpu", "cuda"),
        help="between stages, hidden states pass through host memory (gloo), or from GPU to GPU (NCCL) "
        "(default: as planned)",
    )
    parser.add_argument(
        "--wait-for-ranks",
        type=float,
        default=WAIT_S,
        metavar="SECONDS",
        help=f"of a plan with stages: how long a rank waits for the others to come (default: {WAIT_S})",
    )
    parser.add_argument("--no-overlap", action="store_true", help="one task after the other (for comparison)")
