"""What more GPUs, or more ranks of a host, bring by the planner's own word, without running anything.

python -m benchmarks.stages -o benchmarks/results/stages.json --page docs/stages.md
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.facts import current_commit
from benchmarks.json_result import load_json_result, write_json_result
from hwprofiles.errors import UserError, run_cli
from hwprofiles.files import check_writable, write_atomically
from hwprofiles.profile import load_profile

ONE_LINK = "one-link"
"""The profile of a host whose GPUs are all behind one link."""
_HOST = "h200x4-host"
_ON_FOUR = f"--hw {_HOST} --gpu-mem 16GB"
CASES = (
    f"--model opt-30b --weight-bits 4 --kv-bits 4 --num-prompts 576 {_ON_FOUR}",
    f"--model opt-175b --weight-bits 4 --kv-bits 4 --num-prompts 576 {_ON_FOUR}",
    f"--model opt-175b --weight-bits 4 --kv-bits 4 --num-prompts 32 {_ON_FOUR}",
    f"--model opt-175b --num-prompts 32 {_ON_FOUR}",
    f"--model opt-175b --weight-bits 4 --kv-bits 4 --num-prompts 576 --hw {ONE_LINK} --gpu-mem 16GB",
    f"--model opt-175b --num-prompts 32 --hw {ONE_LINK} --gpu-mem 16GB",
    "--model opt-1.3b --num-prompts 64 --hw two-core",
)
_RATES = re.compile(r"(\d+): ([\d,.]+) \(")
_HEAD = f"""# What more GPUs bring, by the planner

Written by `python -m benchmarks.stages -o benchmarks/results/stages.json --page docs/stages.md`: generated tokens/s of
the best plan for each number of stages, as `planner search --stages auto` with these flags predicts them. Nothing ran.
`{_HOST}` is a host with four H200 GPUs whose links reach 55, 107, 133 and 150 GB/s together for one to four of them;
of `{ONE_LINK}` all four together reach what one does.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one search said."""

    flags: str
    tokens_per_s: Mapping[str, float]
    """By number of stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The contract of benchmarks/results/stages.json."""

    created: str
    commit: str
    answers: Sequence[Answer]


def one_link(path: Path) -> None:
    """Write the profile of a host whose links together are no faster than one."""
    profile = load_profile(_HOST)
    [alone] = [found for found in profile.links_at_once if found.num_gpus == 1]
    links = tuple(replace(alone, num_gpus=found.num_gpus) for found in profile.links_at_once)
    write_atomically(path, replace(profile, name=ONE_LINK, links_at_once=links).to_yaml())


def ask(flags: str, directory: Path) -> Answer:
    """One search as a process; a UserError where it names no stages."""
    given = flags.replace(f"--hw {ONE_LINK}", f"--hw {directory / ONE_LINK}.yaml")
    command = [
        "-m",
        "planner",
        "search",
        *given.split(),
        "--stages",
        "auto",
        "-o",
        str(directory / "plan.yaml"),
    ]
    done = subprocess.run([sys.executable, *command], check=False, capture_output=True, text=True)
    rates = {
        stages: float(rate.replace(",", "")) for stages, rate in _RATES.findall(done.stdout + done.stderr)
    }
    if done.returncode or "1" not in rates:
        raise UserError(f"planner search {flags} names no stages: {' '.join(done.stderr.split())[-300:]}")
    return Answer(flags=flags, tokens_per_s=rates)


def page(found: Answers) -> str:
    """As Markdown."""
    rows = [
        f"| `{answer.flags}` | "
        + ", ".join(
            f"{stages}: {rate:.2f} ({rate / answer.tokens_per_s['1']:.2f}x)"
            for stages, rate in answer.tokens_per_s.items()
        )
        + " |"
        for answer in found.answers
    ]
    head = [
        _HEAD,
        f"{found.created[:10]}, commit {found.commit[:12]}.",
        "",
        "| flags | tokens/s by stages |",
        "|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def main() -> int:
    """Ask, or write the page of a result that is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="result as JSON")
    parser.add_argument("--page", type=Path, help="write the result as Markdown, too")
    parser.add_argument("--keep", action="store_true", help="ask nothing: the page of the result there is")
    arguments = parser.parse_args()
    if not arguments.keep:
        check_writable(arguments.output)
        with tempfile.TemporaryDirectory() as directory:
            one_link(Path(directory) / f"{ONE_LINK}.yaml")
            answers = [ask(flags, Path(directory)) for flags in CASES]
        created = datetime.now(UTC).isoformat(timespec="seconds")
        write_json_result(
            Answers(created=created, commit=current_commit(), answers=answers), arguments.output
        )
    if arguments.page:
        write_atomically(arguments.page, page(load_json_result(arguments.output, Answers)))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
