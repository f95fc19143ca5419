"""The command `planner`: search, estimate, explain, simulate, calibrate."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from importlib import import_module
from typing import Protocol, cast

from hwprofiles.errors import run_cli

_COMMANDS = {
    "search": "the policy with the highest throughput",
    "estimate": "what a given policy would cost, and whether it fits",
    "explain": "what binds a plan, what else it could be, and why it is not another one",
    "simulate": "play a plan's schedule task by task against a profile",
    "calibrate": "fit a profile's rates to the reports of runs",
}
"""Each is a module of planner.commands, imported only where it is called: together they take longer than most runs."""
_SIZE_FLAGS = ("--gpu-mem", "--cpu-mem", "--disk", "--headroom")

_NEW_OBJECTS = 100_000
"""Between two looks for cycles. Importing and searching make many objects that stay and hardly any cycle: looking for
them as often as Python does by default is a tenth of the time, and once more on ending, which is spared, too, a
twentieth."""
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "1")
"""Set before numpy is imported, which starts a thread for each core otherwise. No command has matrices for them."""


class _Command(Protocol):
    """What a module of planner.commands offers."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, arguments: argparse.Namespace) -> int: ...


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for a user's mistake, 130 when interrupted."""
    gc.set_threshold(_NEW_OBJECTS)
    atexit.register(gc.freeze)
    os.environ.setdefault(*_ONE_THREAD)
    words = _joined(sys.argv[1:] if argv is None else argv)
    arguments = _parser(words[0] if words else "").parse_args(words)
    return run_cli(lambda: _module(arguments.command).run(arguments))


def _joined(argv: list[str]) -> list[str]:
    """Negative sizes, and flags in quotes, as one word with their flag, so that they are not taken for flags."""
    joined: list[str] = []
    for word in argv:
        is_size = word[:1] == "-" and word[1:2].isdecimal()
        if joined and ((joined[-1] in _SIZE_FLAGS and is_size) or joined[-1] == "--why-not"):
            joined[-1] = f"{joined[-1]}={word}"
        else:
            joined.append(word)
    return joined


def _parser(called: str) -> argparse.ArgumentParser:
    """All commands by name, and the flags of the one that is called."""
    parser = argparse.ArgumentParser(
        prog="planner", description="Find how to run a language model that does not fit its GPU."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in _COMMANDS.items():
        command = commands.add_parser(name, help=what)
        if name == called:
            _module(name).add_flags(command)
    return parser


def _module(command: str) -> _Command:
    return cast(_Command, import_module(f"planner.commands.{command}"))
