"""What launchers say of a rank, what a rank is bound to, and plans whose messages pass elsewhere."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from executor.binding import bind
from executor.cli import main
from executor.rank_env import is_rank, rank_env
from hwprofiles.errors import UserError
from planner.comm_device import with_comm_device
from planner.plan import Plan
from tests.executor.jobs import save_checkpoint, write_plan
from tests.executor.rank_processes import staged_plan

TORCH = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_RANK": "2",
    "PMIX_NAMESPACE": "703004673",
}


@pytest.fixture(scope="module")
def plan(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Of two stages."""
    return staged_plan(save_checkpoint(tmp_path_factory.mktemp("model"), tokenizer), 2)


@pytest.fixture
def _affinity() -> Iterator[None]:
    """Leave the test process its processors and threads."""
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    yield
    os.sched_setaffinity(0, allowed)
    torch.set_num_threads(threads)


def test_without_a_launcher() -> None:
    """Half of an environment is none."""
    assert rank_env({}) is None
    assert rank_env({"RANK": "0", "WORLD_SIZE": "2"}) is None
    assert not is_rank({"RANK": "0"})


def test_torchrun() -> None:
    """Its agent keeps the store; where there is none, rank 0 does."""
    found = rank_env(TORCH)
    assert found is not None
    assert (found.rank, found.size, found.address, found.port) == (1, 4, "10.0.0.1", 29500)
    first = {**TORCH, "RANK": "0"}
    assert [rank_env(first).is_host, rank_env(TORCH).is_host] == [True, False]  # type: ignore[union-attr]
    assert not rank_env({**first, "TORCHELASTIC_USE_AGENT_STORE": "True"}).is_host  # type: ignore[union-attr]


def test_open_mpi() -> None:
    """On one host its ranks meet at a port of the job's own; over several hosts they must be told where."""
    found = rank_env(MPI)
    assert found is not None
    assert (found.rank, found.size, found.address, found.by_mpi) == (2, 4, "127.0.0.1", True)
    other = rank_env({**MPI, "OMPI_COMM_WORLD_RANK": "0"})
    assert other is not None
    assert (other.port, other.is_host) == (found.port, True)
    assert rank_env({**MPI, "PMIX_NAMESPACE": "703004674"}).port != found.port  # type: ignore[union-attr]
    spread = {**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    with pytest.raises(UserError, match="mpirun -x MASTER_ADDR=HOST"):
        rank_env(spread)
    told = rank_env({**spread, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4000"})
    assert told is not None
    assert (told.address, told.port) == ("10.0.0.7", 4000)


def test_pmix() -> None:
    """PMIx says who this is; the plan says how many there are, unless Slurm does."""
    names = {"PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.7.0"}
    found = rank_env(names)
    assert found is not None
    assert (found.rank, found.size) == (1, None)
    assert rank_env({**names, "SLURM_NTASKS": "3"}).size == 3  # type: ignore[union-attr]


def test_nonsense_in_the_environment() -> None:
    """One line names the variable."""
    with pytest.raises(UserError, match="WORLD_SIZE is 'four'"):
        rank_env({**TORCH, "WORLD_SIZE": "four"})


def test_too_many_processes(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another number of processes than ranks is refused before anything is imported or connected."""

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    for name, value in TORCH.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "FATAL")
    with pytest.raises(SystemExit):
        main(["run", str(write_plan(tmp_path / "plan.yaml", plan)), "--dummy-weights"])
    assert "rank 1: the plan is for 2 ranks, 4 were started; start 2" in capsys.readouterr().err


@pytest.mark.usefixtures("_affinity")
def test_binding(plan: Plan) -> None:
    """A rank gets its processors by their position among those allowed, and no more threads than those."""
    allowed = sorted(os.sched_getaffinity(0))
    stage = replace(plan.stages[0], cpus=(len(allowed) - 1,), threads=64)
    assert bind(stage, 0, widen=False) == []
    assert os.sched_getaffinity(0) == {allowed[-1]}
    assert torch.get_num_threads() == 1


def _refuse(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.usefixtures("_affinity")
@pytest.mark.parametrize(
    ("cpus", "setter", "said"),
    [((0,), _refuse, "the system refuses (Operation not permitted)"), ((10**6,), None, "it may use")],
    ids=["refused", "too few"],
)
def test_refused_binding_is_one_line(
    cpus: tuple[int, ...],
    setter: Callable[..., None] | None,
    said: str,
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container: a warning that names the rank and the reason."""
    if setter:
        monkeypatch.setattr(os, "sched_setaffinity", setter)
    (warning,) = bind(replace(plan.stages[1], cpus=cpus), 1, widen=False)
    monkeypatch.undo()
    assert "warning: rank 1 is not bound" in warning
    assert said in warning
    assert "\n" not in warning


def test_messages_elsewhere(plan: Plan) -> None:
    """On the GPU they leave the cpu tier's ledger, and come back as they were."""
    direct = with_comm_device(plan, "cuda")
    for before, after in zip(plan.stages, direct.stages, strict=True):
        nbytes = before.ledger.bytes_of("cpu", "messages")
        assert (after.ledger.bytes_of("cpu", "messages"), after.ledger.bytes_of("gpu", "messages")) == (
            0,
            nbytes,
        )
    assert with_comm_device(direct, "cpu") == plan


def test_what_is_for_one_rank(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags that a pipeline does not take are refused before a rank is started."""
    words = ["run", str(write_plan(tmp_path / "plan.yaml", plan)), "--dummy-weights"]
    assert main([*words, "--replan"]) == 2
    assert "--replan is for plans of one rank, this one has 2" in capsys.readouterr().err
