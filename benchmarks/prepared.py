"""Prepared: the `executor` command in processes started ahead, which have imported what they need when their run comes.

Each run is a fresh process, with its own memory and CUDA context; only the seconds of its start are saved. The next
one starts while this one loads its weights.
"""

from __future__ import annotations

import atexit
import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence

from hwprofiles.errors import UserError

_IMPORTED = (
    "executor.commands",
    "executor.job",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mixtral.modeling_mixtral",
    "transformers.models.opt.modeling_opt",
    "transformers.models.qwen3.modeling_qwen3",
)
_ERROR_TAIL = 500
_waiting: list[subprocess.Popen[str]] = []
"""The process that was started ahead, if any."""


def run_executor(words: Sequence[str]) -> None:
    """`executor` with these words; a UserError with what it said where it fails."""
    process = _waiting.pop() if _waiting else _start()
    _waiting.append(_start())
    said, _ = process.communicate(json.dumps(list(words)))
    if process.returncode:
        raise UserError(f"executor {shlex.join(words)}: {said.strip()[-_ERROR_TAIL:]}")


def _start() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", __name__]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, **streams)  # type: ignore[call-overload,no-any-return]


@atexit.register
def _end() -> None:
    """What waits for a run that does not come ends with its input."""
    for process in _waiting:
        process.communicate()


def _main() -> int:
    """Import, wait for the words, and do what they say; nothing if there are none."""
    for name in _IMPORTED:
        importlib.import_module(name)
    from executor.cli import main  # noqa: PLC0415  its process only: torch is heavy

    words = sys.stdin.read()
    return main(json.loads(words)) if words else 0


if __name__ == "__main__":
    sys.exit(_main())
