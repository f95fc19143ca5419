"""Processes forked from one that has imported everything, which takes longer than most of what they then do."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

PATIENCE_S = 200
"""For what takes a second or two on an idle machine."""
_IMPORTED = (
    __name__,
    "executor.cli",
    "executor.engine",
    "hwprofiles.measure",
    "tests.executor.ranks",
    "transformers.models.opt.modeling_opt",
    "transformers.models.llama.modeling_llama",
)


def forking() -> ForkServerContext:
    """Where processes start with all modules imported; there is one such server in a test process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """A process, and what it has said."""

    process: BaseProcess
    log: Path

    def wait(self) -> int | None:
        """Its exit status; None if it does not end."""
        self.process.join(PATIENCE_S)
        return self.process.exitcode

    def send(self, signal_: int) -> None:
        """A signal, as by kill."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal_)

    @property
    def said(self) -> str:
        """On stdout and stderr."""
        return self.log.read_text()

    @property
    def errors(self) -> list[str]:
        """What it says of why it ended; a progress bar that was cut off may stand before it."""
        return re.findall(r"error: .*", self.said)


def start(body: Callable[[], int], log: Path, environ: Mapping[str, str] | None = None) -> Forked:
    """A process that ends with the status `body` returns; `body` is a module's function, or a partial of one."""
    log.touch()
    process = forking().Process(target=_run, args=(body, log, dict(environ or {})), daemon=True)
    process.start()
    return Forked(process=process, log=log)


def _run(body: Callable[[], int], log: Path, environ: dict[str, str]) -> None:
    os.environ.update(environ)
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    sys.exit(body())


def wait_until(is_so: Callable[[], bool], forked: Forked | None = None) -> None:
    """Look every few milliseconds; a process that ends meanwhile, if one is given, will not bring it about."""
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        assert forked is None or forked.process.is_alive(), forked and forked.said
        assert time.monotonic() < until, "it does not come about"
        time.sleep(0.005)
