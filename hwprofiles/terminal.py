"""The consoles that the command lines print to."""

from __future__ import annotations

import os

from rich.console import Console

_WIDTH = 120
"""Of a file or a pipe, where rich would take 80 columns and cut our tables."""


def make_console(*, stderr: bool = False) -> Console:
    """As wide as the terminal, or as COLUMNS says; wide enough for every table where there is neither."""
    console = Console(stderr=stderr)
    if console.is_terminal or os.environ.get("COLUMNS"):
        return console
    return Console(stderr=stderr, width=_WIDTH)
