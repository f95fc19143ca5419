"""The one exception a user may cause: a line that names the value, the limit and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable

USER_ERROR_EXIT = 2
INTERRUPTED_EXIT = 130


class UserError(Exception):
    """Bad input or a machine that is too small; the message is one line and names the remedy."""


def run_cli(body: Callable[[], int]) -> int:
    """Run a command's body; a UserError becomes one line on stderr and exit status 2, Ctrl-C 130."""
    try:
        return body()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_EXIT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT
    except BrokenPipeError:
        return 0
