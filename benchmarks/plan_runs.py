"""Plans by name, run one after the other, each run with its report in a file; the command line of such a benchmark."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from benchmarks.prepared import run_executor
from hwprofiles.errors import UserError
from hwprofiles.files import write_atomically
from hwprofiles.yaml_io import from_plain
from planner.report import RunReport, load_report

T = TypeVar("T")
Function = Callable[[argparse.Namespace], int]


def load_named(path: Path, cls: type[T], only: Sequence[str]) -> dict[str, T]:
    """The cases of a YAML file by name; all of them, or only these."""
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if unknown := set(only) - set(data):
        raise UserError(f"{path}: has no case {min(unknown)}; it has {', '.join(data)}")
    return {name: from_plain(data[name], cls, f"{path}, {name}") for name in only or data}


def given_policy(percent: str, batch: str) -> list[str]:
    """Flags of `planner estimate`: FlexGen's six percents, and gpu batch size x number of gpu batches."""
    size, count = batch.split(" x ")
    return ["--percent", *percent.split(), "--gpu-batch-size", size, "--num-gpu-batches", count]


def run_command(words: Sequence[str]) -> None:
    """Run one of our commands; a UserError with what it said where it fails."""
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{shlex.join(words)}: {done.stderr.strip()[-500:]}")


def run_plan(plan: Path, arguments: argparse.Namespace, kept: Path) -> RunReport:
    """Run one block of it on random weights; its report, kept in a file once it is whole."""
    with tempfile.TemporaryDirectory(dir=arguments.offload_dir) as directory:
        report = Path(directory, "report.json")
        flags = ["--dummy-weights", "--offload-dir", directory, "--report", str(report)]
        words = ["run", str(plan), *flags]
        if arguments.quick_start:
            run_executor(words)
        else:
            run_command(["executor", *words])
        write_atomically(kept, report.read_text())
    return load_report(kept)


def run_cases(
    names: Mapping[str, Path], run: Callable[[str, Path], RunReport], say: Callable[[str, RunReport], str]
) -> int:
    """Run what has no report yet, and say what came of it; how many failed."""
    failed = 0
    for name, path in names.items():
        if path.exists():
            continue
        try:
            print(say(name, run(name, path)), flush=True)
        except UserError as error:
            failed += 1
            print(f"{name}: {error}", flush=True)
    return failed


def parser_of(
    doc: str | None, run: Function, sum_up: Function, write_page: Function, *, has_rounds: bool = False
) -> argparse.ArgumentParser:
    """run, sum and page, with the flags that every such benchmark has; `has_rounds`: as many as are asked for."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{run,sum,page}")
    for name, function in (("run", run), ("sum", sum_up)):
        command = commands.add_parser(name, help=(function.__doc__ or "").lower())
        command.set_defaults(function=function)
        command.add_argument("cases", type=Path, help="cases, YAML")
        command.add_argument("--hw", required=True, help="profile of this machine")
        command.add_argument(
            "--reports", required=True, type=Path, metavar="DIR", help="where reports are kept"
        )
        command.add_argument(
            "--only", nargs="*", default=[], metavar="CASE", help="these cases (default: all)"
        )
    if has_rounds:
        commands.choices["run"].add_argument(
            "--rounds", type=int, default=1, metavar="N", help="run every case so often (default: 1)"
        )
    commands.choices["run"].add_argument("--offload-dir", type=Path, default=Path(tempfile.gettempdir()))
    commands.choices["run"].add_argument(
        "--quick-start",
        action="store_true",
        help="start each run's process while the one before it runs: some seconds less each; with few cores it slows "
        "that one",
    )
    commands.choices["sum"].add_argument("-o", "--output", type=Path, required=True, help="result, JSON")
    command = commands.add_parser("page", help=(write_page.__doc__ or "").lower())
    command.set_defaults(function=write_page)
    command.add_argument("results", nargs="+", type=Path, help="results, JSON")
    command.add_argument("-o", "--output", type=Path, required=True, help="page, Markdown")
    return parser


def run_function(arguments: argparse.Namespace) -> int:
    """The function of the command that was given."""
    status: int = arguments.function(arguments)
    return status
