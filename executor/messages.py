"""Messages between pipeline stages, ids of the token before and a gpu batch's hidden states: their slots and tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from executor.activations import ActivationHomes
from executor.arena import Arena
from executor.block import BatchState
from executor.transport import Transport
from planner.messages import Messages
from planner.shape import Place
from planner.sizes import Sizes
from planner.tasks import Resource, Task, TaskKind


@dataclass(frozen=True, slots=True)
class Message:
    """Views of one message in its slot."""

    data: torch.Tensor
    """All of it, as it is sent; uint8."""
    ids: torch.Tensor
    """[rows] int64: what was sampled for the token before; meaningless in prefill."""
    hidden: torch.Tensor
    """[rows, tokens, hidden]"""


class MessageSlots:
    """Registered host memory, or memory of the compute device, that messages leave from and arrive in."""

    def __init__(self, sizes: Sizes, *, compute_device: torch.device) -> None:
        messages = self.sizes = sizes.messages
        self.dtype: torch.dtype = getattr(torch, sizes.model.dtype)
        on_device = messages.tier == sizes.compute_tier
        device = compute_device if on_device else torch.device("cpu")
        register = compute_device.type == "cuda" and not on_device
        self._arena = Arena(messages.nbytes, device, register=register)
        self._incoming = [self._arena.take(messages.slot_bytes) for _ in range(messages.incoming_slots)]
        self._outgoing = [self._arena.take(messages.slot_bytes) for _ in range(messages.outgoing_slots)]

    def incoming(self, slot: int, rows: int, num_tokens: int) -> Message:
        """From the stage before."""
        return self._message(self._incoming[slot], rows, num_tokens)

    def outgoing(self, slot: int, rows: int, num_tokens: int) -> Message:
        """For the next stage."""
        return self._message(self._outgoing[slot], rows, num_tokens)

    def _message(self, slot: torch.Tensor, rows: int, num_tokens: int) -> Message:
        start = self.sizes.ids_bytes(rows)
        stop = start + self.sizes.hidden_bytes(rows, num_tokens)
        hidden = slot[start:stop].view(self.dtype).view(rows, num_tokens, self.sizes.model.hidden_size)
        return Message(slot[:stop], slot[: 8 * rows].view(torch.int64), hidden)

    def close(self) -> None:
        """Give the memory back."""
        self._incoming.clear()
        self._outgoing.clear()
        self._arena.close()


def lanes_on_device(place: Place, messages: Messages) -> tuple[Resource, ...]:
    """Lanes that have a stream of their own where the compute device is a GPU."""
    lanes: tuple[Resource, ...] = ("h2d", "d2h", "gpu")
    if messages.tier == "gpu":
        lanes += () if place.is_first else ("net_in",)
        lanes += () if place.is_last else ("net_out",)
    return lanes


class Mail:
    """The bodies of send and receive tasks."""

    def __init__(self, slots: MessageSlots, activations: ActivationHomes, transport: Transport) -> None:
        self.slots, self.activations, self.transport = slots, activations, transport

    def carry(self, task: Task, state: BatchState) -> int:
        """Do the task; the bytes that moved."""
        if task.slots.incoming < 0 and task.slots.outgoing < 0:
            return self._carry_ids(task, state)
        match task.kind, task.resource:
            case TaskKind.SEND, "net_out":
                return self._send(task, state)
            case TaskKind.RECEIVE, "net_in":
                return self._receive(task, state)
            case TaskKind.SEND, _:
                source, target = self._working(task, state), self._outgoing(task, state).hidden
            case _:
                source, target = self._incoming(task, state).hidden, self._working(task, state)
        target.copy_(source, non_blocking=True)
        return source.nbytes

    def meeting(self, task: Task) -> Callable[[], None] | None:
        """What waits for the other stage before a message goes; None for other tasks."""
        match task.kind, task.resource:
            case TaskKind.SEND, "net_out":
                return self.transport.meet_following
            case TaskKind.RECEIVE, "net_in":
                return self.transport.meet_before
        return None

    def _carry_ids(self, task: Task, state: BatchState) -> int:
        """What the last stage has sampled goes to the first."""
        ids = state.sampled(task.i)
        (self.transport.send if task.kind is TaskKind.SEND else self.transport.receive)(ids)
        return ids.nbytes

    def _send(self, task: Task, state: BatchState) -> int:
        message = self._outgoing(task, state)
        if task.i > 0:
            message.ids.copy_(state.sampled(task.i - 1), non_blocking=True)
        self.transport.send(message.data)
        return message.data.nbytes

    def _receive(self, task: Task, state: BatchState) -> int:
        message = self._incoming(task, state)
        self.transport.receive(message.data)
        if task.i > 0:
            state.sampled(task.i - 1).copy_(message.ids, non_blocking=True)
        return message.data.nbytes

    def _incoming(self, task: Task, state: BatchState) -> Message:
        return self.slots.incoming(task.slots.incoming, state.num_rows, state.num_new(task.i))

    def _outgoing(self, task: Task, state: BatchState) -> Message:
        return self.slots.outgoing(task.slots.outgoing, state.num_rows, state.num_new(task.i))

    def _working(self, task: Task, state: BatchState) -> torch.Tensor:
        num_new = state.num_new(task.i)
        return self.activations.working(task.k, task.slots.activation, state.activation_rows, num_new)
