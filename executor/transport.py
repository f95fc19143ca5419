"""Transport: one stage's ends of the ring that hidden states and ids travel, over torch.distributed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import torch
from torch import distributed

FOREVER = timedelta(days=30)
"""For messages: a stage may compute for as long as it likes; whether its rank is alive is found out elsewhere."""

_PLACE = re.compile(r"^\[[^]]*\] ")
"""Gloo's errors begin with the line of its source."""


class Transport(Protocol):
    """Each stage sends to the one after it and receives from the one before; the last one's next is the first.

    Where both ends are on hosts, `meet_following` and `meet_before` come before each message: what a stage waits for
    the other one is not counted as time that the message takes.
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
            self._wait(distributed.isend(data, self.following, group=self._group(data)), data)

    def receive(self, data: torch.Tensor) -> None:
        """From the stage before."""
        with _to(self.before):
            self._wait(distributed.irecv(data, self.before, group=self._group(data)), data)

    def _group(self, data: torch.Tensor) -> distributed.ProcessGroup | None:
        return self.host_group if data.device.type == "cpu" else self.gpu_group

    def _wait(self, work: distributed.Work | None, data: torch.Tensor) -> None:
        """On the host until it is done; on a GPU the current stream waits, not the host."""
        assert work is not None, "every rank is in the group"
        if data.device.type == "cpu":
            work.wait(FOREVER)
        else:
            work.wait()


@contextmanager
def _to(peer: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = _PLACE.sub("", " ".join(str(error).split())).split(". ")[0]
        raise PeerLostError(peer, reason[:120]) from None
