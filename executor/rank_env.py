"""What a launcher's environment says of this process's rank: torchrun's, Open MPI's or PMIx's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from hwprofiles.errors import UserError

WAIT_S = 25
"""For ranks to come, from when this one has; all that start at once are there within a fraction of it."""
_TORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MPI = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK")
_FIRST_PORT, _NUM_PORTS = 20_000, 10_000
"""Below those that systems give to programs that ask for any port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnv:
    """One process among those that a launcher has started, and where they meet."""

    rank: int
    size: int | None
    """None where the launcher does not say: as many as the plan has stages."""
    address: str
    port: int
    is_host: bool
    """This process listens at the address; otherwise another one, or the launcher itself."""
    by_mpi: bool = False


def is_rank(environ: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process as one of several."""
    return all(environ.get(name) for name in _TORCH) or any(environ.get(name) for name in _MPI)


def rank_env(environ: Mapping[str, str]) -> RankEnv | None:
    """None where no launcher has started this process."""
    if all(environ.get(name) for name in _TORCH):
        return _of_torch(environ)
    if environ.get("OMPI_COMM_WORLD_RANK"):
        rank, size = (_number(environ, f"OMPI_COMM_WORLD_{name}") for name in ("RANK", "SIZE"))
        local_size = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", size)
        return _of_mpi(environ, rank, size, on_one_host=local_size == size)
    if environ.get("PMIX_RANK"):
        rank, size = _number(environ, "PMIX_RANK"), _number(environ, "SLURM_NTASKS", 0)
        num_hosts = _number(environ, "SLURM_NNODES", 1)
        return _of_mpi(environ, rank, size or None, on_one_host=num_hosts == 1)
    return None


def _of_torch(environ: Mapping[str, str]) -> RankEnv:
    rank = _number(environ, "RANK")
    return RankEnv(
        rank=rank,
        size=_number(environ, "WORLD_SIZE"),
        address=environ["MASTER_ADDR"],
        port=_number(environ, "MASTER_PORT"),
        is_host=rank == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
    )


def _of_mpi(environ: Mapping[str, str], rank: int, size: int | None, *, on_one_host: bool) -> RankEnv:
    """MPI says who there is, not where: rank 0 listens at MASTER_ADDR, at a port that is the job's own."""
    address = environ.get("MASTER_ADDR") or ("127.0.0.1" if on_one_host else None)
    if address is None:
        raise UserError(
            "the ranks are on several hosts, and mpirun does not say where rank 0 is; "
            "give all of them its host: mpirun -x MASTER_ADDR=HOST"
        )
    port = _number(environ, "MASTER_PORT", _port_of_job(environ))
    return RankEnv(rank=rank, size=size, address=address, port=port, is_host=rank == 0, by_mpi=True)


def _port_of_job(environ: Mapping[str, str]) -> int:
    """The same in all ranks of a job, another one in another job."""
    names = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "SLURM_JOB_ID")
    job = next((environ[name] for name in names if environ.get(name)), "")
    return _FIRST_PORT + int.from_bytes(hashlib.sha256(job.encode()).digest()[:4], "big") % _NUM_PORTS


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name) or ("" if default is None else str(default))
    if not text.isdecimal():
        raise UserError(f"{name} is {environ.get(name)!r} in the environment; a launcher sets it to a number")
    return int(text)
