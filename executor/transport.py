"""Transport: one stage's ends of the ring that hidden states and ids travel, over torch.distributed."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import distributed


class Transport(Protocol):
    """Each stage sends to the one after it and receives from the one before; the last one's next is the first."""

    def send(self, data: torch.Tensor) -> None:
        """Send a contiguous tensor to the next stage; on the host it has left when this returns."""

    def receive(self, data: torch.Tensor) -> None:
        """Fill a contiguous tensor with what the stage before sends; on a GPU, in the current stream's order."""


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

    def send(self, data: torch.Tensor) -> None:
        """To the next stage."""
        if data.device.type == "cpu":
            distributed.send(data, self.following, group=self.host_group)
        else:
            self._wait(distributed.isend(data, self.following, group=self.gpu_group))

    def receive(self, data: torch.Tensor) -> None:
        """From the stage before."""
        if data.device.type == "cpu":
            distributed.recv(data, self.before, group=self.host_group)
        else:
            self._wait(distributed.irecv(data, self.before, group=self.gpu_group))

    def _wait(self, work: distributed.Work | None) -> None:
        """The current stream waits, not the host."""
        assert work is not None, "every rank is in the group"
        work.wait()
