"""Where a plan goes: to a file, as tables to a person, or as JSON to a program."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from hwprofiles.files import write_atomically
from hwprofiles.terminal import make_console
from hwprofiles.yaml_io import to_plain
from planner.plan import Plan
from planner.render import plan_view
from planner.render_job import job_lines


def deliver(plan: Plan, arguments: argparse.Namespace, *notes: str) -> int:
    """Write and show a plan as `add_output`'s flags say; the exit status."""
    if arguments.output:
        write_atomically(arguments.output, plan.to_yaml())
    if arguments.json:
        print(json.dumps(to_plain(plan), indent=1))
        return 0
    console = make_console()
    console.print(plan_view(plan, *job_lines(plan, datetime.now().astimezone()), *notes))
    if arguments.output:
        console.print(f"plan written to {arguments.output}")
    return 0


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Shows on stderr, where a person watches, what a search is at."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("searching") as status:
        yield status.update
