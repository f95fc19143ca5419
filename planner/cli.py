"""The command `planner`: search, estimate, simulate, calibrate."""

from __future__ import annotations

import argparse
import sys

from hwprofiles.errors import run_cli
from planner.commands import calibrate, estimate, search, simulate
from planner.commands.options import SIZE_FLAGS

_COMMANDS = {
    "search": (search, "the policy with the highest throughput"),
    "estimate": (estimate, "what a given policy would cost, and whether it fits"),
    "simulate": (simulate, "play a plan's schedule task by task against a profile"),
    "calibrate": (calibrate, "fit a profile's rates to the reports of runs"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for a user's mistake, 130 when interrupted."""
    arguments = _parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
    return run_cli(lambda: _COMMANDS[arguments.command][0].run(arguments))


def _joined(argv: list[str]) -> list[str]:
    """Negative sizes as one word with their flag, so that they are not taken for flags themselves."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] in SIZE_FLAGS and word[:1] == "-" and word[1:2].isdecimal():
            joined[-1] = f"{joined[-1]}={word}"
        else:
            joined.append(word)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="planner", description="Find how to run a language model that does not fit its GPU."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, what) in _COMMANDS.items():
        module.add_flags(commands.add_parser(name, help=what))
    return parser
