"""Flags that several commands share, and what they say."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from hwprofiles.host import mismatch
from hwprofiles.points import Dtype
from hwprofiles.profile import HardwareProfile, load_profile
from hwprofiles.units import parse_bytes
from planner.commands.workload import add_workload, workload_of
from planner.headroom import parse_headroom
from planner.machine import Caps
from planner.model import ModelSpec, load_model
from planner.problem import Problem, make_problem
from planner.workload import Workload


def add_problem(parser: argparse.ArgumentParser) -> None:
    """Model, machine and workload."""
    parser.add_argument(
        "--model", required=True, metavar="NAME-OR-DIR", help="known name, config.json or checkpoint"
    )
    add_profile(parser)
    parser.add_argument(
        "--dtype", choices=(*get_args(Dtype), "auto"), default="auto", help="default: auto, the checkpoint's"
    )
    add_workload(parser)
    for tier, flag, what in (
        ("gpu", "--gpu-mem", "GPU memory, such as 16GB"),
        ("cpu", "--cpu-mem", "host memory that the whole process may use"),
        ("disk", "--disk", "disk space"),
    ):
        parser.add_argument(
            flag, dest=f"{tier}_bytes", metavar="SIZE", help=f"cap on {what} (default: all there is)"
        )
    parser.add_argument(
        "--headroom",
        metavar="SHARE-OR-SIZE",
        help="host memory to leave free of --cpu-mem, or of all there is: 5%% or 2GB (default: what the kernel and "
        "other processes held when the profile was measured, or 2%% where it does not say)",
    )


def add_profile(parser: argparse.ArgumentParser) -> None:
    """The machine."""
    parser.add_argument("--hw", required=True, metavar="NAME-OR-PATH", help="hardware profile")


def add_plan(parser: argparse.ArgumentParser) -> None:
    """A plan to look at."""
    parser.add_argument("plan", type=Path, metavar="PLAN.YAML", help="what `planner search -o` has written")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where a plan goes."""
    parser.add_argument("-o", "--output", type=Path, metavar="PLAN.YAML", help="write the plan to this file")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON and nothing else")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What `add_problem`'s flags name."""

    model: ModelSpec
    workload: Workload
    profile: HardwareProfile
    caps: Caps


def inputs_of(arguments: argparse.Namespace) -> Inputs:
    """Read them; a profile of another host warns."""
    profile = load_profile(arguments.hw)
    dtype: Dtype | None = None if arguments.dtype == "auto" else arguments.dtype
    caps = Caps(
        gpu_bytes=_size(arguments.gpu_bytes),
        cpu_bytes=_size(arguments.cpu_bytes),
        disk_bytes=_size(arguments.disk_bytes),
        headroom=parse_headroom(arguments.headroom) if arguments.headroom is not None else None,
    )
    model = load_model(arguments.model, dtype)
    inputs = Inputs(model=model, workload=workload_of(arguments, model), profile=profile, caps=caps)
    warning = mismatch(profile)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    return inputs


def problem_of(arguments: argparse.Namespace) -> Problem:
    """The problem that `add_problem`'s flags describe, for one process."""
    inputs = inputs_of(arguments)
    return make_problem(inputs.model, inputs.workload, inputs.profile, inputs.caps)


def _size(text: str | None) -> int | None:
    return None if text is None else parse_bytes(text)
