"""Ranks as processes with a launcher's environment, forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from executor.cli import main
from hwprofiles.profile import HardwareProfile
from planner.cluster import Cluster
from planner.estimate_stages import estimate_stages
from planner.machine import Caps
from planner.model import load_model
from planner.plan import Plan
from planner.policy import CommDevice, Policy
from planner.workload import Workload
from tests.executor.jobs import THREE_TIERS
from tests.executor.ranks import PRELOAD
from tests.planner.problems import emulated

PATIENCE_S = 200
"""For what takes a second or two on an idle machine."""


def staged_plan(
    model_dir: Path,
    num_stages: int,
    *,
    gpu_batch_size: int = 2,
    num_gpu_batches: int = 4,
    gen_len: int = 6,
    host: HardwareProfile | None = None,
    comm_device: CommDevice = "cpu",
) -> Plan:
    """The planner's plan of a pipeline over three tiers, with an emulated GPU unless the host has others."""
    cluster = Cluster(
        model=load_model(str(model_dir)),
        workload=Workload(prompt_len=32, gen_len=gen_len),
        hosts=(host or emulated(),),
        caps=Caps(),
        comm_device=comm_device,
    )
    policy = Policy(
        gpu_batch_size=gpu_batch_size,
        num_gpu_batches=num_gpu_batches,
        weights=THREE_TIERS,
        cache=THREE_TIERS,
        activations=THREE_TIERS,
        prefill_rows=gpu_batch_size,
    )
    return estimate_stages(cluster, num_stages, min(num_stages, num_gpu_batches), lambda _: policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankProcess:
    """A rank, and what it has said."""

    process: BaseProcess
    log: Path

    def wait(self) -> int | None:
        """Its exit status; None if it does not end."""
        self.process.join(PATIENCE_S)
        return self.process.exitcode

    def kill(self) -> None:
        """As by kill -9."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)

    @property
    def errors(self) -> list[str]:
        """What it says of why it ended; a progress bar that was cut off may stand before it."""
        return re.findall(r"error: .*", self.log.read_text())


def start_rank(environ: Mapping[str, str], words: Sequence[object], log: Path) -> RankProcess:
    """`executor WORDS` as a launcher would start it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, __name__])
    process = context.Process(
        target=_run, args=(dict(environ), [str(word) for word in words], log), daemon=True
    )
    process.start()
    return RankProcess(process=process, log=log)


def _run(environ: dict[str, str], words: list[str], log: Path) -> None:
    os.environ.update(environ)
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    status = main(words)
    sys.stdout.flush()
    os._exit(status)


def torch_environ(rank: int, size: int, port: int) -> dict[str, str]:
    """As torchrun sets it."""
    numbers = {"RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def mpi_environ(rank: int, size: int, port: int) -> dict[str, str]:
    """As Open MPI sets it, on one host."""
    numbers = {"RANK": rank, "SIZE": size, "LOCAL_RANK": rank, "LOCAL_SIZE": size}
    found = {f"OMPI_COMM_WORLD_{name}": str(number) for name, number in numbers.items()}
    return {**found, "PMIX_RANK": str(rank), "PMIX_NAMESPACE": "1", "MASTER_PORT": str(port)}


def free_port() -> int:
    """One that nobody listened at a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(is_so: Callable[[], bool]) -> None:
    """Look every few milliseconds."""
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until, "it does not come about"
        time.sleep(0.005)
