"""Transport: one stage's ends of the ring that hidden states and ids travel, over torch.distributed."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import torch
from torch import distributed

from hwprofiles.errors import UserError

FOREVER = timedelta(days=30)
"""For messages: a stage may compute for as long as it likes; whether its rank is alive is found out elsewhere."""

_NCCL_ENVIRON = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
}
"""Whether ranks are alive is found out elsewhere; torch's own watchdogs would end a process in pages, not in a line."""
_PLACE = re.compile(r"^\[[^]]*\] ")
"""Gloo's errors begin with the line of its source."""


class Transport(Protocol):
    """Each stage sends to the one after it and receives from the one before; the last one's next is the first.

    `meet_following` and `meet_before` come before each message: what a stage waits for the other one is not counted as
    time that the message takes, and no GPU has a kernel that waits for another GPU.
    """

    def meet_following(self) -> None:
        """Wait until the next stage is there to receive."""

    def meet_before(self) -> None:
        """Wait until the stage before is there to send."""

    def send(self, data: torch.Tensor) -> None:
        """Send a contiguous tensor to the next stage; on the host it has left when this returns."""

    def receive(self, data: torch.Tensor) -> None:
        """Fill a contiguous tensor with what the stage before sends; on a GPU, in the current stream's order."""


class PeerLostError(Exception):
    """The connection to another rank broke."""

    def __init__(self, peer: int, reason: str) -> None:
        super().__init__(f"the connection to rank {peer} broke ({reason})")
        self.peer, self.reason = peer, reason


class Ring:
    """The ranks of a process group as stages in their order.

    What lies on the host goes by gloo and blocks its thread; what lies on a GPU goes by NCCL and is ordered by the
    current stream. Only neighbours talk, and in one direction each, so that both ends agree on the order.
    """

    def __init__(
        self, host_group: distributed.ProcessGroup, gpu_group: distributed.ProcessGroup | None
    ) -> None:
        self.host_group, self.gpu_group = host_group, gpu_group
        self._issuing = threading.Lock()
        """NCCL is told of one message at a time: a thread sends and another one receives."""
        rank, size = distributed.get_rank(), distributed.get_world_size()
        self.following, self.before = (rank + 1) % size, (rank - 1) % size

    def meet_following(self) -> None:
        """A byte to the next stage, which leaves once that one asks for it."""
        self.send(torch.zeros(1, dtype=torch.uint8))

    def meet_before(self) -> None:
        """A byte from the stage before."""
        self.receive(torch.zeros(1, dtype=torch.uint8))

    def send(self, data: torch.Tensor) -> None:
        """To the next stage."""
        with _to(self.following):
            if data.device.type == "cpu":
                self._wait(distributed.isend(data, self.following, group=self.host_group), FOREVER)
            else:
                with self._issuing:
                    self._wait(distributed.isend(data, self.following, group=self.gpu_group))

    def receive(self, data: torch.Tensor) -> None:
        """From the stage before."""
        with _to(self.before):
            if data.device.type == "cpu":
                self._wait(distributed.irecv(data, self.before, group=self.host_group), FOREVER)
            else:
                with self._issuing:
                    self._wait(distributed.irecv(data, self.before, group=self.gpu_group))

    @staticmethod
    def _wait(work: distributed.Work | None, timeout: timedelta | None = None) -> None:
        """On the host until it is done; of NCCL's work, for which there is no timeout, the current stream waits."""
        assert work is not None, "every rank is in the group"
        if timeout:
            work.wait(timeout)
        else:
            work.wait()


def connect_gpus(ring: Ring, device: torch.device) -> Ring:
    """The same ring with hidden states passing from GPU to GPU by NCCL; a UserError where that does not work.

    NCCL connects two ranks with their first message and blocks both until it has. So a byte goes down the stages now,
    before a stage takes its time to compute.
    """
    for name, value in _NCCL_ENVIRON.items():
        os.environ.setdefault(name, value)
    rank = distributed.get_rank()
    try:
        torch.cuda.set_device(device)
        found = Ring(ring.host_group, distributed.new_group(backend="nccl", timeout=FOREVER))
        byte = torch.zeros(1, dtype=torch.uint8, device=device)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch says that two ranks get a communicator of their own, as they shall
            if rank > 0:
                found.receive(byte)
            if found.following > rank:
                found.send(byte)
        torch.cuda.synchronize(device)
    except (PeerLostError, RuntimeError) as error:
        raise UserError(
            f"rank {rank}: NCCL does not connect {device} with its neighbours ({' '.join(str(error).split())[:200]}); "
            "give each rank a GPU of its own, or let hidden states pass through host memory with --comm-device cpu"
        ) from None
    return found


@contextmanager
def _to(peer: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = _PLACE.sub("", " ".join(str(error).split())).split(". ")[0]
        raise PeerLostError(peer, reason[:120]) from None
