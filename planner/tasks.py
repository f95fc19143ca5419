"""Tasks: the units of work that a schedule is made of, and the resources they occupy."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple, Protocol

Ids = tuple[int, ...]
Resource = Literal["h2d", "d2h", "gpu", "cpu", "disk_read", "disk_write", "net_in", "net_out"]
PRELUDE = -1
"""Layer number of the embedding; the head's is the number of layers."""


class TaskKind(StrEnum):
    """What a task does; FlexGen's names, and attention on the CPU."""

    LOAD_WEIGHT = "load_weight"
    LOAD_CACHE = "load_cache"
    LOAD_ACTIVATION = "load_activation"
    COMPUTE = "compute"
    ATTEND = "attend"
    """Decode attention of the CPU to rows of its own, between the first and the last part of a compute task."""
    STORE_ACTIVATION = "store_activation"
    STORE_CACHE = "store_cache"
    SEND = "send"
    RECEIVE = "receive"


class Slots(NamedTuple):
    """The slot of each kind that a visit works in; -1 without one."""

    weight: int
    staging: int
    """The host buffer that the disk part of a layer passes through; cache and activations have one a slot."""
    cache: int
    activation: int
    incoming: int = -1
    """Of a message from the stage before."""
    outgoing: int = -1


class Visit(NamedTuple):
    """One stop of the zig-zag walk."""

    i: int
    j: int
    k: int
    first: bool
    """The first gpu batch of this layer's pass."""
    last: bool
    num_layers: int = 1
    """From j on."""


class Task(NamedTuple):
    """One unit of work at (i token, j layer, k gpu batch) on one resource."""

    id: int
    kind: TaskKind
    resource: Resource
    i: int
    j: int
    k: int
    slots: Slots
    deps: tuple[int, ...]
    part: int = 0
    num_parts: int = 1
    """A layer's weights cross the link in parts, between the cache loads of the visits before it. Compute has parts
    where the CPU attends some rows: up to attention, the GPU's own attention if it has rows too, and what follows."""
    num_layers: int = 1
    """From j on, that decode computes as one task where nothing moves between them."""


class Emit(Protocol):
    """Queues one task; its id as a tuple."""

    def __call__(
        self, kind: TaskKind, resource: Resource, visit: Visit, slots: Slots, deps: Ids, /
    ) -> Ids: ...
