"""Prepared: the `executor` command in processes forked from one that has imported what it needs.

Each run is a process of its own, with its own memory and CUDA context; only the seconds of its start are saved.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

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


def run_executor(words: Sequence[str]) -> None:
    """`executor` with these words; a UserError with what it said where it fails."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        process = context.Process(target=_execute, args=(list(words), str(log)))
        process.start()
        process.join()
        if process.exitcode:
            raise UserError(f"executor {shlex.join(words)}: {log.read_text().strip()[-_ERROR_TAIL:]}")


def _execute(words: list[str], log: str) -> None:
    from executor.cli import main  # noqa: PLC0415  in the child only: torch is heavy

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.exit(main(words))
