"""Hidden states from GPU to GPU by NCCL, and through host memory from GPUs: the same tokens, and one line for a fault.

All but the first two tests need two GPUs.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed
from transformers import PreTrainedTokenizerBase

from executor import transport
from executor.engine import EngineOptions
from executor.messages import Mail
from executor.transport import Ring, connect_gpus
from hwprofiles.errors import UserError
from planner.plan import Plan
from planner.prompts import Request
from planner.schedule import tasks
from planner.shape import shape_of
from planner.tasks import TaskKind
from tests.executor.jobs import many_prompts, results, save_checkpoint, write_plan, write_prompts
from tests.executor.rank_processes import free_port, staged_plan, start_rank, torch_environ
from tests.executor.ranks import RankPool, make_pipeline
from tests.executor.test_pipeline import CPU_ATTENTION, LENGTHS, THREE_TIERS
from tests.executor.tiny import random_model, random_prompts, reference_tokens, run_plan, save
from tests.planner.problems import GB, small_t4
from tests.processes import wait_until

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
END_S = 30


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    """Three processes."""
    with RankPool(3) as ranks:
        yield ranks


def connect_on_the_host(ring: Ring, rank: int, reason: str) -> str:
    """`connect_gpus` with gloo in NCCL's place, which refuses if there is a reason."""

    def new_group(backend: str, timeout: object) -> distributed.ProcessGroup:
        assert (backend, timeout) == ("nccl", transport.FOREVER)
        if reason:
            raise RuntimeError(reason)
        return ring.host_group

    kept = transport.distributed.new_group, torch.cuda.set_device, torch.cuda.synchronize
    torch.cuda.set_device, torch.cuda.synchronize = (lambda _: None,) * 2  # type: ignore[assignment]
    transport.distributed.new_group = new_group  # type: ignore[assignment]
    try:
        return repr(connect_gpus(ring, torch.device("cpu")).gpu_group is ring.host_group)
    except UserError as error:
        return str(error)
    finally:
        transport.distributed.new_group, torch.cuda.set_device, torch.cuda.synchronize = kept


def test_ranks_connect_before_they_compute(pool: RankPool) -> None:
    """A byte goes down the stages, in an order in which nobody waits for ever; what NCCL says of a failure is told."""
    assert pool.run(3, connect_on_the_host, "") == ["True"] * 3
    for rank, told in enumerate(pool.run(3, connect_on_the_host, "Duplicate GPU detected")):
        assert f"rank {rank}: NCCL does not connect cpu" in str(told)
        assert "Duplicate GPU detected" in str(told)
        assert "--comm-device cpu" in str(told)


@pytest.mark.parametrize("comm_device", ["cpu", "cuda"])
def test_ranks_meet_before_every_message(comm_device: str, tmp_path: Path) -> None:
    """Whatever carries it: a GPU's kernel must not wait for a rank that is not ready."""

    class Calls:
        def meet_following(self) -> None:
            """Not called here."""

        meet_before = meet_following

    spec = save(random_model("opt", num_hidden_layers=4), tmp_path / "model")
    plan = make_pipeline(spec, [{"num_layers": 2}] * 2, 2, comm_device=comm_device, **THREE_TIERS)
    mail = Mail.__new__(Mail)
    mail.transport = Calls()  # type: ignore[assignment]
    for rank in range(2):
        for task in tasks(shape_of(plan.of_rank(rank).sizes()), 3):
            wanted = {"net_out": mail.transport.meet_following, "net_in": mail.transport.meet_before}
            is_message = task.kind in {TaskKind.SEND, TaskKind.RECEIVE}
            assert mail.meeting(task) == (wanted.get(task.resource) if is_message else None)


def generate_on_gpu(
    ring: Ring,
    rank: int,
    plan: Plan,
    directory: Path,
    requests: Sequence[Request],
    seed: int | None,
) -> dict[str, tuple[int, ...]]:
    """This rank's part on the GPU of its number; with a seed tasks are held back at random."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    draw = random.Random(seed)
    options = EngineOptions(
        device=device,
        offload_dir=directory.parent,
        transport=connect_gpus(ring, device) if plan.policy.comm_device == "cuda" else ring,
        delay=(lambda _: draw.choice((0.0, 0.0, 0.0, 0.001, 0.004))) if seed is not None else None,
    )
    return run_plan(plan.of_rank(rank), directory, requests, options, is_first=rank == 0)


@pytest.mark.gpu
@two_gpus
@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("comm_device", ["cuda", "cpu"])
@pytest.mark.parametrize(
    "tiers", [{}, THREE_TIERS, CPU_ATTENTION], ids=["all gpu", "three tiers", "cpu attention"]
)
def test_tokens_equal_transformers(
    tiers: dict[str, object], comm_device: str, seed: int | None, pool: RankPool, tmp_path: Path
) -> None:
    """Two ranks on two GPUs, ragged prompts, waves, a short last block: token by token as transformers on the CPU."""
    model = random_model("opt", num_hidden_layers=4)
    spec = save(model, tmp_path / "model")
    stages = [{"num_layers": 1}, {"num_layers": 3}]
    plan = make_pipeline(spec, stages, 2, num_gpu_batches=4, emulated=False, comm_device=comm_device, **tiers)
    requests = random_prompts(LENGTHS * 2, [6, 3, 8, 1, 5] * 5)
    found = pool.run(2, generate_on_gpu, plan, tmp_path / "model", requests, seed)[0]
    assert found == reference_tokens(model, requests)


@pytest.mark.gpu
@two_gpus
@pytest.mark.parametrize("is_killed", [False, True], ids=["to its end", "killed"])
def test_a_job_on_two_gpus(is_killed: bool, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """`executor run` over NCCL; a rank that is killed ends the other one within 30 s, with one line."""
    checkpoint = save_checkpoint(tmp_path / "model", tokenizer, num_hidden_layers=4)
    gpu = replace(small_t4().gpus[0], memory_bytes=4 * GB)
    host = replace(small_t4(), gpus=(gpu, gpu))
    plan = staged_plan(checkpoint, 2, host=host, gen_len=90 if is_killed else 6, comm_device="cuda")
    path, count = write_plan(tmp_path / "plan.yaml", plan), 400 if is_killed else 13
    write_prompts(tmp_path / "p.jsonl", many_prompts(count))
    (tmp_path / "offload").mkdir()
    port = free_port()
    words: list[object] = ["run", path, "--model-path", checkpoint, "--input", tmp_path / "p.jsonl"]
    words += ["--output", tmp_path / "r.jsonl", "--offload-dir", tmp_path / "offload"]
    ranks = [start_rank(torch_environ(r, 2, port), words, tmp_path / f"log{r}") for r in range(2)]
    if not is_killed:
        assert [rank.wait() for rank in ranks] == [0, 0], [rank.said for rank in ranks]
        assert len(results(tmp_path / "r.jsonl")) == count
        return
    wait_until(lambda: (tmp_path / "r.jsonl").exists() and (tmp_path / "r.jsonl").stat().st_size > 0)
    ranks[1].send(signal.SIGKILL)
    began_s = time.monotonic()
    assert ranks[0].wait() == 2
    assert time.monotonic() - began_s < END_S
    assert len(ranks[0].errors) == 1
    assert "rank 1" in ranks[0].errors[0]
