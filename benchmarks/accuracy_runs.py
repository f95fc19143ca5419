"""The plans of benchmarks.accuracy and their runs, each with its report in a file."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from hwprofiles.errors import UserError
from hwprofiles.files import write_atomically
from hwprofiles.yaml_io import from_plain
from planner.report import RunReport, load_report


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyCase:
    """A plan to be made and run; with percents it is given, without them searched."""

    planner: str
    """Flags of the planner's command."""
    percent: str | None = None
    """FlexGen's six: weights, cache and activations on gpu and cpu."""
    batch: str | None = None
    """gpu batch size x number of gpu batches."""


def load_accuracy_cases(path: Path) -> dict[str, AccuracyCase]:
    """The cases of a file by name."""
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return {name: from_plain(case, AccuracyCase, f"{path}, {name}") for name, case in data.items()}


def report_path(directory: Path, name: str) -> Path:
    """Where the report of a case is kept."""
    return directory / f"{name}.json"


def commands_of(case: AccuracyCase, hw: str, directory: Path) -> tuple[list[str], list[str]]:
    """The planner's command, and the executor's."""
    plan, report = str(directory / "plan.yaml"), str(directory / "report.json")
    planner = ["planner", "search" if case.percent is None else "estimate", *shlex.split(case.planner)]
    if case.percent is not None:
        size, count = (case.batch or "1 x 1").split(" x ")
        planner += ["--percent", *case.percent.split(), "--gpu-batch-size", size, "--num-gpu-batches", count]
    run = ["executor", "run", plan, "--dummy-weights", "--report", report, "--offload-dir", str(directory)]
    return [*planner, "--hw", hw, "-o", plan], run


def run_case(case: AccuracyCase, hw: str, offload_dir: Path, kept: Path) -> RunReport:
    """Plan it and run it; its report, kept as `kept`. A UserError with what the command said where it fails."""
    with tempfile.TemporaryDirectory(dir=offload_dir) as name:
        for command in commands_of(case, hw, Path(name)):
            done = subprocess.run(
                [sys.executable, "-m", *command], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise UserError(f"{shlex.join(command)}: {done.stderr.strip()[-500:]}")
        write_atomically(kept, Path(name, "report.json").read_text())
    return load_report(kept)
