"""Processes that stand ready to be the ranks of a pipeline, and hand-made pipelines for them."""

from __future__ import annotations

import dataclasses
import pickle
import random
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import distributed

from executor.engine import EngineOptions
from executor.transport import Ring
from planner.model import ModelSpec
from planner.plan import Plan, Stage
from planner.prompts import Request
from tests.executor.tiny import make_plan, run_plan
from tests.processes import forking

WAIT_S, FAILED_WAIT_S = 280, 20
"""For an answer; for the others' once a rank has failed."""
Work = Callable[..., object]


class RankPool:
    """Started once for many tests: importing torch and transformers takes longer than most of them."""

    def __init__(self, size: int) -> None:
        context = forking()
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
        self._kill()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    def run(self, size: int, work: Work, *arguments: object) -> list[object]:
        """`work(ring, rank, *arguments)` on each rank of a group of `size`; what each returned."""
        store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for rank, pipe in enumerate(self._pipes[:size]):
            pipe.send_bytes(pickle.dumps((store.port, size, rank, work, arguments)))
        answers: dict[int, object] = {}
        failures: list[str] = []
        while len(answers) < size:
            waiting = [pipe for rank, pipe in enumerate(self._pipes[:size]) if rank not in answers]
            ready = wait(waiting, FAILED_WAIT_S if failures else WAIT_S)
            if not ready:
                self._kill()  # a rank that waits for one that failed would answer in the middle of another test
                raise AssertionError("\n".join(failures) or f"only ranks {sorted(answers)} answer")
            for pipe in ready:
                is_done, answer = pickle.loads(pipe.recv_bytes())
                answers[self._pipes.index(pipe)] = answer
                failures += [] if is_done else [answer]
        assert not failures, "\n".join(failures)
        return [answers[rank] for rank in range(size)]


def _serve(pipe: Connection) -> None:
    """A rank's life: one piece of work after the other, each in a process group of its own."""
    torch.set_num_threads(1)
    while True:
        try:
            port, size, rank, work, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        store = distributed.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=WAIT_S))
        distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=WAIT_S)
        )
        try:
            host_group = distributed.new_group(backend="gloo")
            answer = True, work(Ring(host_group, None), rank, *arguments)
        except BaseException:
            answer = False, f"rank {rank}:\n{traceback.format_exc()}"
        pipe.send_bytes(pickle.dumps(answer))
        distributed.destroy_process_group()


def make_pipeline(
    spec: ModelSpec, stages: Sequence[Mapping[str, object]], num_waves: int, **common: object
) -> Plan:
    """A plan with a stage for each mapping: its `num_layers`, and what `make_plan` takes for it."""
    parts, first = [], 0
    for own in stages:
        arguments = {**common, **own}
        stop = first + int(str(arguments.pop("num_layers")))
        parts.append(make_plan(spec.part(first, stop), num_waves=num_waves, **arguments))  # type: ignore[arg-type]
        first = stop
    assert first == spec.num_layers
    return dataclasses.replace(parts[0], stages=tuple(map(stage_of, parts)))


def stage_of(part: Plan) -> Stage:
    """A plan of some layers as a stage."""
    spec = part.model.spec()
    return Stage(
        layers=(spec.first_layer, spec.first_layer + spec.num_layers),
        host=0,
        gpu=None,
        cpus=(),
        threads=1,
        hardware=part.hardware,
        policy=part.policy,
        placement=part.placement,
        ledger=part.ledger,
        prediction=part.prediction,
    )


def generate_on_rank(
    ring: Ring,
    rank: int,
    plan: Plan,
    directory: Path,
    requests: Sequence[Request],
    seed: int | None,
    offload_dir: Path,
    overlap: bool,
) -> dict[str, tuple[int, ...]]:
    """This rank's part in the plan's tokens, tasks held back at random with a seed; the first rank has them all."""
    draw = random.Random(seed)
    delay = (lambda _: draw.choice((0.0, 0.0, 0.0, 0.001, 0.004))) if seed is not None else None
    options = EngineOptions(
        device=torch.device("cpu"), offload_dir=offload_dir, transport=ring, delay=delay, overlap=overlap
    )
    return run_plan(plan.of_rank(rank), directory, requests, options, is_first=rank == 0)


def run_pipeline(
    pool: RankPool,
    plan: Plan,
    directory: Path,
    requests: Sequence[Request],
    *,
    seed: int | None = None,
    overlap: bool = True,
) -> object:
    """Tokens by custom_id, as the first rank has them."""
    arguments = plan, directory, requests, seed, directory.parent, overlap
    return pool.run(len(plan.stages), generate_on_rank, *arguments)[0]
