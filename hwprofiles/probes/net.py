"""Net: messages from one process to another through host memory, by size, over torch.distributed's gloo."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from hwprofiles.errors import UserError
from hwprofiles.points import SizePoint
from hwprofiles.probes.timing import measured_rate
from hwprofiles.units import KIB, MIB

SIZES_BYTES = (64 * KIB, MIB, 16 * MIB, 64 * MIB)
_WAIT = timedelta(minutes=4)
"""For the other process, which imports torch first; seconds on a machine at rest."""
_END = 0
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetRates:
    """What was measured between two processes."""

    points: tuple[SizePoint, ...]
    across_hosts: bool
    """A launcher started the two, on a host each; otherwise both are on this one."""


def measure_net(slice_s: float) -> NetRates:
    """Messages to another process: of a launcher's two, or else to one started here for it.

    Both of a launcher's processes measure, one after the other, and both get their own rates.
    """
    if all(os.environ.get(name) for name in _LAUNCHED):
        return NetRates(points=_between_launched(slice_s), across_hosts=True)
    with _echoing():
        return NetRates(points=tuple(_sent(1, slice_s)), across_hosts=False)


def _between_launched(slice_s: float) -> tuple[SizePoint, ...]:
    rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    if size != 2:
        raise UserError(
            f"--net measures between 2 processes, the launcher started {size}; start one on each host"
        )
    try:
        distributed.init_process_group("gloo", timeout=_WAIT)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"the two processes do not meet ({reason}); check MASTER_ADDR and MASTER_PORT"
        ) from None
    points: tuple[SizePoint, ...] = ()
    for sender in (0, 1):
        if rank == sender:
            points = tuple(_sent(1 - rank, slice_s))
        else:
            _receive(1 - rank)
    distributed.destroy_process_group()
    return points


@contextmanager
def _echoing() -> Iterator[None]:
    """A process of this host that receives; its messages go by the loopback interface."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    other = multiprocessing.get_context("spawn").Process(target=_echo, args=(store.port,), daemon=True)
    other.start()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=_WAIT)
    try:
        yield
        other.join(_WAIT.total_seconds())
    finally:
        distributed.destroy_process_group()
        other.kill()


def _echo(port: int) -> None:
    store = distributed.TCPStore("127.0.0.1", port, is_master=False)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=1, world_size=2, timeout=_WAIT)
    _receive(0)
    distributed.destroy_process_group()


def _sent(peer: int, slice_s: float) -> Iterator[SizePoint]:
    """The rates at which a peer takes messages of each size; it is told how many come, and says when it has them."""
    for size in SIZES_BYTES:
        data = torch.zeros(size, dtype=torch.uint8)

        def run(num_rounds: int, data: torch.Tensor = data) -> float:
            distributed.send(torch.tensor([num_rounds, len(data)]), peer)
            took_s = torch.zeros(1, dtype=torch.float64)
            for _ in range(num_rounds):
                distributed.send(data, peer)
            distributed.recv(took_s, peer)
            return float(took_s)

        yield SizePoint(size_bytes=size, bytes_per_s=measured_rate(run, size, slice_s / len(SIZES_BYTES)))
    distributed.send(torch.tensor([_END, _END]), peer)


def _receive(peer: int) -> None:
    """Take messages until there are no more; times them here, from the first one's request to the last one's end."""
    while True:
        order = torch.zeros(2, dtype=torch.int64)
        distributed.recv(order, peer)
        num_rounds, size = order.tolist()
        if num_rounds == _END:
            return
        data = torch.empty(size, dtype=torch.uint8)
        began_s = time.perf_counter()
        for _ in range(num_rounds):
            distributed.recv(data, peer)
        distributed.send(torch.tensor([time.perf_counter() - began_s], dtype=torch.float64), peer)
