"""Rank group: ranks find one another, make sure that they have the same plan, and end together."""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TypeVar, cast

import torch
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from executor.board import Board, Cause, Hello, Store
from executor.rank_env import WAIT_S, RankEnv
from executor.transport import PeerLostError, Ring, connect_gpus
from executor.watch import Watch
from hwprofiles.errors import UserError

T = TypeVar("T")
_CAUSE_S = 3.0
"""How long a rank that is told to stop looks for the reason."""
_LINGER_S = 5.0
"""How long the rank that keeps the store waits for the others to have read why."""
_AGAIN_S = 0.2
_POLL_S = 0.05
_PINGS = 8


class RankFailedError(UserError):
    """The pipeline ends: because of this rank, or of another one."""


@dataclass(slots=True, kw_only=True)
class RankGroup:
    """One rank among all; an implementation of Ranks."""

    board: Board
    watch: Watch
    hellos: dict[int, Hello]
    transport: Ring
    clock_offset_s: float

    @property
    def rank(self) -> int:
        """This one's number."""
        return self.board.rank

    @property
    def on_this_host(self) -> tuple[int, ...]:
        """The other ranks whose memory is this host's too."""
        own = self.hellos[self.rank]
        return tuple(r for r, hello in self.hellos.items() if r != self.rank and hello.host_id == own.host_id)

    def meet(self, name: str) -> None:
        """Wait until all ranks have come to a place."""
        self.board.meet(name)

    def share(self, value: T | None) -> T:
        """What the first rank gives."""
        return self.board.share(value)

    def collect(self, name: str, value: T) -> list[T]:
        """At the first rank what all of them give."""
        return self.board.collect(name, value)


@contextmanager
def rank_group(
    env: RankEnv,
    size: int,
    *,
    plan: str,
    flags: str,
    nccl_device: torch.device | None = None,
    wait_s: float = WAIT_S,
) -> Iterator[RankGroup]:
    """The group of all ranks; whatever ends one of them ends all, each with a RankFailedError that says why.

    `plan` is the plan's digest and `flags` what else must be the same everywhere. Hidden states pass by NCCL where
    there is a device for it, on every rank or on none.
    """
    store = _open_store(env, wait_s)
    board = Board(cast(Store, PrefixStore("tierplan", store)), env.rank, size)
    own = _take_place(board, _hello(env.rank, plan, flags))
    hellos: dict[int, Hello] = {}
    watch = Watch(board, hellos, lambda cause: _ends(board.rank, cause))
    try:
        with _interrupts():
            hellos.update(_meet(board, wait_s))
            watch.start()
            _compare(board, own, hellos[0])
            group = RankGroup(
                board=board,
                watch=watch,
                hellos=hellos,
                transport=_connect(store, board, hellos, nccl_device, wait_s),
                clock_offset_s=clock_offset(env.rank, _far(hellos)),
            )
            yield group
            board.meet("done")
            watch.stop()
            _part(board)
    except BaseException as error:
        cause = _cause_of(board, watch, error)
        watch.stop()
        _linger(board, env)
        if isinstance(error, Exception) and not isinstance(error, UserError | PeerLostError):
            raise  # a bug shows its traceback; the others know of it
        raise RankFailedError(_ends(env.rank, cause)) from None


def _ends(rank: int, cause: Cause) -> str:
    return f"rank {rank}: {cause.text}" if cause.rank == rank else f"rank {rank} ends: {cause.text}"


def _open_store(env: RankEnv, wait_s: float) -> TCPStore:
    """Where the ranks meet."""
    where = f"{env.address}:{env.port}"
    other_port = "set MASTER_PORT to another port for all ranks"
    try:
        store = _within(wait_s, lambda: _tcp_store(env, wait_s))
    except (distributed.DistError, RuntimeError, ValueError) as error:
        if env.is_host:
            reason = "is in use" if "EADDRINUSE" in str(error) else "cannot be listened at"
            raise RankFailedError(
                f"rank {env.rank}: {where}, where the ranks meet, {reason}; wait for the other job, or {other_port}"
            ) from None
        store = None
    if store is None:
        raise RankFailedError(
            f"rank {env.rank} ends: rank 0 does not answer at {where} within {wait_s:.0f} s: it has not come, or "
            f"another program is there; start all ranks, or {other_port}"
        )
    return store


def _tcp_store(env: RankEnv, wait_s: float) -> TCPStore:
    timeout = timedelta(seconds=wait_s)
    return TCPStore(env.address, env.port, None, env.is_host, timeout, wait_for_workers=False)


def _within(wait_s: float, make: Callable[[], T]) -> T | None:
    """What is made, or None after a time: a store waits for ever where another program has accepted it."""
    answers: queue.SimpleQueue[T | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(make())
        except Exception as error:
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=wait_s)
    except queue.Empty:
        return None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _hello(rank: int, plan: str, flags: str) -> Hello:
    space = Path("/proc/self/ns/pid")
    boot = Path("/proc/sys/kernel/random/boot_id")
    host_id = f"{boot.read_text().strip()} {os.readlink(space)}" if boot.exists() else socket.gethostname()
    return Hello(
        rank=rank, host=socket.gethostname(), host_id=host_id, pid=os.getpid(), plan=plan, flags=flags
    )


def _take_place(board: Board, own: Hello) -> Hello:
    """A UserError where another process has this rank; its job goes on."""
    there = board.say_hello(own)
    if there != own:
        raise RankFailedError(
            f"rank {own.rank} ends: {there.name} has its place; if that is another job's, "
            "set MASTER_PORT to another port for all ranks of this one"
        )
    return own


def _meet(board: Board, wait_s: float) -> dict[int, Hello]:
    """Wait for all ranks; a UserError where one does not come."""
    until = time.monotonic() + wait_s
    while len(hellos := board.hellos()) < board.size:
        if board.cause():
            raise KeyboardInterrupt
        if time.monotonic() > until:
            missing = ", ".join(str(rank) for rank in range(board.size) if rank not in hellos)
            raise UserError(
                f"rank {missing} has not come within {wait_s:.0f} s; start all {board.size} ranks"
            )
        time.sleep(_POLL_S)
    return hellos


def _compare(board: Board, own: Hello, first: Hello) -> None:
    """A UserError where this rank was given something else to do than the first one."""
    if own.plan != first.plan:
        what = f"another plan ({own.plan}) than rank 0 ({first.plan})"
    elif own.flags != first.flags:
        what = f"other flags ({own.flags}) than rank 0 ({first.flags})"
    else:
        board.meet("agreed")
        return
    raise UserError(f"{own.name} was given {what}; give all ranks the same")


def _connect(
    store: TCPStore, board: Board, hellos: dict[int, Hello], nccl_device: torch.device | None, wait_s: float
) -> Ring:
    """Process groups for messages on the host and, where there is a device for it, from GPU to GPU."""
    if len({hello.host_id for hello in hellos.values()}) == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a container's host name may lead nowhere
    distributed.init_process_group(
        "gloo",
        store=PrefixStore("gloo", store),
        rank=board.rank,
        world_size=board.size,
        timeout=timedelta(seconds=wait_s),
    )
    host_group = distributed.group.WORLD
    assert host_group is not None
    ring = Ring(host_group, None)
    return connect_gpus(ring, nccl_device) if nccl_device else ring


def _far(hellos: dict[int, Hello]) -> list[int]:
    return [rank for rank in sorted(hellos) if hellos[rank].host_id != hellos[0].host_id]


def clock_offset(rank: int, far: Iterable[int], clock: Callable[[], float] = time.perf_counter) -> float:
    """What to add to this rank's clock for rank 0's: of several exchanges the one that took the least time.

    `far` are the ranks on other hosts than rank 0's, with which it shares its clock.
    """
    answer = torch.zeros(1, dtype=torch.float64)
    best = (float("inf"), 0.0)
    for other in far:
        for _ in range(_PINGS):
            if rank == 0:
                distributed.recv(answer, other)
                answer[0] = clock()
                distributed.send(answer, other)
            elif rank == other:
                sent_s = clock()
                distributed.send(answer, 0)
                distributed.recv(answer, 0)
                took_s = clock() - sent_s
                best = min(best, (took_s, float(answer) - (sent_s + took_s / 2)))
    return best[1]


def _cause_of(board: Board, watch: Watch, error: BaseException) -> Cause:
    """Why the pipeline ends; the first cause that any rank has found counts."""
    rank = board.rank
    if isinstance(error, PeerLostError):
        reason = f"rank {error.peer} is gone: rank {rank} lost its connection to it ({error.reason})"
        own = Cause(rank=error.peer, text=reason)
    elif isinstance(error, KeyboardInterrupt):
        known = watch.find_cause(_CAUSE_S) if watch.hellos else None
        own = known or Cause(rank=rank, text="was told to stop; results written so far are kept")
    elif isinstance(error, UserError):
        own = Cause(rank=rank, text=str(error))
    else:
        own = Cause(
            rank=rank, text=f"failed with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )
    if isinstance(error, PeerLostError) and (killed := watch.find_cause(_POLL_S)):
        own = killed  # it knows better than a broken connection
    try:
        return board.fail(own)
    except distributed.DistError:
        return watch.cause or own


def _linger(board: Board, env: RankEnv) -> None:
    """Tell that this rank knows; the one that keeps the store waits until all of them do."""
    until = time.monotonic() + _LINGER_S
    with suppress(distributed.DistError):
        board.mark("knows")
        while env.is_host and time.monotonic() < until and len(board.marked("knows")) < board.size:
            time.sleep(_POLL_S)


def _part(board: Board) -> None:
    """Nobody leaves while another one still watches; the rank that keeps the store may be gone by then."""
    until = time.monotonic() + _LINGER_S
    with suppress(distributed.DistError):
        board.mark("parted")
        while time.monotonic() < until and len(board.marked("parted")) < board.size:
            time.sleep(_POLL_S)
    distributed.destroy_process_group()


@contextmanager
def _interrupts() -> Iterator[None]:
    """A signal to stop interrupts the main thread, but not while it already unwinds from something."""
    main, is_active = threading.main_thread().ident, True
    assert main is not None

    def again() -> None:
        if is_active:
            signal.pthread_kill(main, signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        if sys.exception() is None:
            raise KeyboardInterrupt
        timer = threading.Timer(_AGAIN_S, again)  # what is handled now may be no failure at all
        timer.daemon = True
        timer.start()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        if sys.exception() is None:  # after a failure the handlers stay until the process has ended
            is_active = False
            for number, handler in before.items():
                signal.signal(number, handler)
