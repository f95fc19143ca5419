"""The command `hwprofile`: measure, list, show, diff."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hwprofiles.budget import FULL, QUICK, Budget
from hwprofiles.errors import UserError, run_cli
from hwprofiles.files import write_atomically
from hwprofiles.host import mismatch
from hwprofiles.profile import HardwareProfile, load_profile
from hwprofiles.tables import diff_table, list_table, profile_tables
from hwprofiles.terminal import make_console
from hwprofiles.units import format_bytes, format_seconds, parse_bytes

_BUSY_SHARE = 0.5
"""Of the processors: a load above it is worth a note."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for a user's mistake, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    commands = {"measure": _measure, "list": _list, "show": _show, "diff": _diff}
    return run_cli(lambda: commands[arguments.command](arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hwprofile", description="Measure what a machine can do, for the planner."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser(
        "measure",
        help="measure this machine and write hw.yaml",
        description="Measure this machine: memory, compute, links, disk, and all at once. A SIZE is a number "
        "and a unit, such as 16GB (10**9) or 16GiB (2**30). The full measurement takes under 6 minutes.",
    )
    measure.add_argument(
        "-o", "--output", type=Path, default=Path("hw.yaml"), help="file to write (default: hw.yaml)"
    )
    measure.add_argument(
        "--quick", action="store_true", help="fewer points, under 60 seconds (default: full)"
    )
    measure.add_argument(
        "--disk-dir",
        type=Path,
        default=Path(),
        help="directory whose disk is measured (default: the current one)",
    )
    measure.add_argument(
        "--gpu-mem", metavar="SIZE", help="cap on the memory of each GPU (default: all of it)"
    )
    measure.add_argument(
        "--cpu-mem", metavar="SIZE", help="cap on host memory (default: what the host allows)"
    )
    measure.add_argument(
        "--emulate-gpu", metavar="SIZE", help="describe one GPU that is an arena of this size in host memory"
    )
    measure.add_argument(
        "--net",
        action="store_true",
        help="measure only messages between processes, into the profile that -o names: under torchrun with a process "
        "on each of two hosts those between the hosts, else those within this one",
    )
    measure.add_argument("--name", help="the profile's name (default: the output file's name without .yaml)")
    commands.add_parser("list", help="profiles that come with tierplan")
    show = commands.add_parser("show", help="a profile as tables")
    show.add_argument("profile", metavar="NAME-OR-PATH")
    diff = commands.add_parser("diff", help="two profiles side by side: every rate and the ratio B / A")
    diff.add_argument("a", metavar="A", help="name or path")
    diff.add_argument("b", metavar="B", help="name or path")
    return parser


def _measure(arguments: argparse.Namespace) -> int:
    from hwprofiles.measure import Request, measure  # noqa: PLC0415  torch, which the other commands do without

    output: Path = arguments.output
    if arguments.net:
        return _measure_net(output, QUICK if arguments.quick else FULL)
    _check_output(output)
    budget = QUICK if arguments.quick else FULL
    request = Request(
        name=arguments.name or output.stem,
        budget=budget,
        disk_dir=arguments.disk_dir,
        source=_command_line(arguments),
        gpu_cap_bytes=_size(arguments.gpu_mem),
        cpu_cap_bytes=_size(arguments.cpu_mem),
        emulated_gpu_bytes=_size(arguments.emulate_gpu),
    )
    _note_if_busy()
    start = time.monotonic()
    with _terminated_as_interrupted(), _progress_bar() as progress:
        profile = measure(request, progress)
    write_atomically(output, profile.to_yaml())
    _print_profile(profile)
    print(f"wrote {output} in {format_seconds(time.monotonic() - start)}")
    return 0


def _measure_net(output: Path, budget: Budget) -> int:
    """Add the net to a profile that was measured before."""
    from hwprofiles.probes.net import measure_net  # noqa: PLC0415  torch

    profile = load_profile(str(output))
    found = measure_net(budget.net_s)
    if found.across_hosts:
        profile = replace(profile, between_hosts=found.points)
    else:
        profile = replace(profile, between_processes=found.points)
    write_atomically(output, profile.to_yaml())
    best = max(point.bytes_per_s.median for point in found.points)
    where = "between hosts" if found.across_hosts else "between processes of this host"
    print(f"{format_bytes(best)}/s {where}; wrote {output}")
    return 0


def _list(_: argparse.Namespace) -> int:
    make_console().print(list_table())
    return 0


def _show(arguments: argparse.Namespace) -> int:
    profile = load_profile(arguments.profile)
    _print_profile(profile)
    warning = mismatch(profile)
    if warning:
        print(f"note: {warning}", file=sys.stderr)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    make_console().print(diff_table(load_profile(arguments.a), load_profile(arguments.b)))
    return 0


def _note_if_busy() -> None:
    """Say so when other work will lower the figures."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > _BUSY_SHARE * cores:
        print(f"note: this host is busy (load {load:.1f} on {cores} processors)", file=sys.stderr)


def _check_output(path: Path) -> None:
    """Refuse before minutes of measuring what could not be written after them."""
    if path.is_dir():
        raise UserError(f"{path} is a directory; give -o a file name such as {path / 'hw.yaml'}")
    if not path.parent.is_dir():
        raise UserError(f"directory {path.parent} does not exist; create it or choose another -o")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"directory {path.parent} cannot be written; choose another -o")


def _command_line(arguments: argparse.Namespace) -> str:
    words = ["hwprofile", "measure"]
    words += ["--quick"] if arguments.quick else []
    for flag in ("gpu_mem", "cpu_mem", "emulate_gpu"):
        value = getattr(arguments, flag)
        words += [f"--{flag.replace('_', '-')}", value] if value else []
    return shlex.join(words)


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    size = parse_bytes(text)
    if size == 0:
        raise UserError(f"size {text!r} must be more than zero; write for example 16GB")
    return size


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does, so that what was begun is cleaned up."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress_bar() -> Iterator[ProgressBar]:
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=make_console(stderr=True), transient=True) as progress:
        yield ProgressBar(progress)


class ProgressBar:
    """Shows what a measurement reports."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def __call__(self, label: str, num_done: int, num_points: int) -> None:
        self._progress.update(self._task, description=label, completed=num_done, total=num_points)


def _print_profile(profile: HardwareProfile) -> None:
    console = make_console()
    for table in profile_tables(profile):
        console.print(table)
