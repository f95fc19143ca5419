"""How long `planner search` takes as a whole process, by the number of layers and by what is left open.

python -m benchmarks.search_speed -o benchmarks/results/search-speed.json --page docs/search-speed.md
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.facts import current_commit, machine_facts
from benchmarks.json_result import load_json_result, write_json_result
from benchmarks.search_speed_page import page
from benchmarks.search_speed_result import SearchSpeed, Timed
from hwprofiles.errors import run_cli
from hwprofiles.files import check_writable, write_atomically
from planner.model import load_model

_LAYERS = (12, 24, 48, 96, 192, 384)
_BASE = "opt-175b"
_OPEN = (
    ("nothing but the policy", "--hw t4-host"),
    ("no attention on the CPU", "--hw t4-host --cpu-attention off"),
    ("1000 prompts", "--hw t4-host --num-prompts 1000"),
    ("bits", "--hw t4-host --weight-bits auto --kv-bits auto"),
    ("bits, on a faster host", "--hw h200-host --weight-bits auto --kv-bits auto"),
    ("bits and stages, four GPUs", "--hw h200x4-host --weight-bits auto --kv-bits auto --stages auto"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command to be timed."""

    group: str
    label: str
    arguments: Sequence[str]
    """Of the interpreter."""


def cases(directory: Path) -> Iterator[Case]:
    """Importing alone; models with more and more layers, written to `directory`; more and more left open."""
    yield Case(group="imports", label="imports", arguments=("-c", "import planner.commands.search"))
    config = dict(load_model(_BASE).config)
    for count in _LAYERS:
        folder = directory / f"{_BASE}-{count}-layers"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": count}))
        yield Case(group="layers", label=str(count), arguments=_search(str(folder), "--hw t4-host"))
    for label, flags in _OPEN:
        yield Case(group="open", label=label, arguments=_search(_BASE, flags))


def _search(model: str, flags: str) -> tuple[str, ...]:
    return ("-m", "planner", "search", "--model", model, *flags.split())


def timed(case: Case, rounds: int) -> Timed:
    """Run a case's process so many times; a process that fails ends the benchmark."""
    wall_s, cpu_s = [], []
    for _ in range(rounds):
        used, began = _children_s(), time.perf_counter()
        subprocess.run([sys.executable, *case.arguments], check=True, capture_output=True)
        wall_s.append(time.perf_counter() - began)
        cpu_s.append(_children_s() - used)
    flags = " ".join(Path(part).name if Path(part).is_absolute() else part for part in case.arguments)
    return Timed(group=case.group, label=case.label, command=f"python {flags}", wall_s=wall_s, cpu_s=cpu_s)


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(rounds: int) -> SearchSpeed:
    """All cases."""
    load_average, _, _ = os.getloadavg()
    with tempfile.TemporaryDirectory() as directory:
        rows = [timed(case, rounds) for case in cases(Path(directory))]
    return SearchSpeed(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=current_commit(),
        machine=machine_facts(),
        load_average=load_average,
        rows=rows,
    )


def main() -> int:
    """Measure, or write the page of a result that is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_speed", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="result as JSON")
    parser.add_argument("--page", type=Path, help="write the result as Markdown, too")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command (default: 5)")
    parser.add_argument(
        "--keep", action="store_true", help="measure nothing: the page of the result there is"
    )
    arguments = parser.parse_args()
    if not arguments.keep:
        check_writable(arguments.output)
        write_json_result(measure(arguments.rounds), arguments.output)
    if arguments.page:
        write_atomically(arguments.page, page(load_json_result(arguments.output, SearchSpeed)))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
