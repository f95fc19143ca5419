"""Ranks as processes with a launcher's environment, and plans for them."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

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
from tests.planner.problems import emulated
from tests.processes import Forked, start


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


def start_rank(environ: Mapping[str, str], words: Sequence[object], log: Path) -> Forked:
    """`executor WORDS` as a launcher would start it."""
    return start(partial(main, [str(word) for word in words]), log, environ)


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
