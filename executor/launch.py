"""Launch: starts a plan's ranks on this host with torch.distributed's own launcher, and says which one was killed."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from hwprofiles.errors import INTERRUPTED_EXIT, USER_ERROR_EXIT, UserError
from planner.plan import Plan

_PACKAGE_PARENT = Path(__file__).parents[1]


def launch(plan: Plan, command: Sequence[str]) -> int:
    """Run `executor COMMAND` once for each stage; the exit status of all."""
    hosts = {stage.host for stage in plan.stages}
    if len(hosts) > 1:
        raise UserError(
            f"the plan's stages are on {len(hosts)} hosts: start them there with torchrun or mpirun; "
            "docs/distributed.md has the commands"
        )
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the ranks say themselves what fails
    path = os.pathsep.join(filter(None, (str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH"))))
    os.environ["PYTHONPATH"] = path
    try:
        launch_agent(_config(len(plan.stages)), sys.executable, ["-m", "executor", *command])
    except ChildFailedError as error:
        return _status(error.failures)
    except SignalException:
        return INTERRUPTED_EXIT
    return 0


def _config(num_ranks: int) -> LaunchConfig:
    """One host, any free port, no second attempt: a job is resumed from its results."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=secrets.token_hex(8),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    config.numa_options = None  # each rank binds itself as its plan says
    return config


def _status(failures: dict[int, ProcessFailure]) -> int:
    """What a rank could not say itself is said here: that it was killed."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    for rank, code in codes.items():
        if code < 0:
            print(f"error: rank {rank} was killed by {failures[rank].signal_name()}", file=sys.stderr)
    return max((code for code in codes.values() if code > 0), default=USER_ERROR_EXIT)
