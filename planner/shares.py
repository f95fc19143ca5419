"""Shares: what the LP decides, and what it asks of time and memory, as numbers or as linear expressions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Generic, Literal

from planner.layout import DTYPE_BYTES, layer_slabs
from planner.model import LayerSpec, ModelSpec
from planner.plan import Phase
from planner.policy import Bits, Tier
from planner.work import A, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares(Generic[A]):
    """What the LP decides, in `Relaxed.unit_bytes` per sequence by tier, as numbers or as expressions."""

    weights: dict[Tier, A]
    cache: dict[Tier, A]
    activations: dict[Tier, A]
    attended: A
    """Cache off the compute tier that the CPU attends to."""
    slot: A
    """One cache slot."""
    inverse_batches: A
    """1 / number of gpu batches."""
    one: A
    """The number 1."""


DiskUse = Literal["none", "weights", "all"]
"""What may be on disk."""
DISK_USES: tuple[DiskUse, ...] = ("all", "weights", "none")
"""Each allows what the next one does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a choice may be carried out; what is not allowed, the LP does without."""

    moves_activations: bool = True
    """Activations may leave the compute tier, for which slots are kept."""
    attends: bool = False
    """The CPU may attend rows beside a GPU, for which the caller's thread waits."""
    disk: DiskUse = "all"

    def uses_at_most(self, disk: DiskUse) -> bool:
        """Whether there may be no more on disk than this."""
        return DISK_USES.index(self.disk) >= DISK_USES.index(disk)

    def needs_no_more(self, other: Way) -> bool:
        """Whether what is feasible in the other way is so in this one."""
        alike = self.moves_activations == other.moves_activations
        return other.uses_at_most(self.disk) and alike and (other.attends or not self.attends)


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRows:
    """Rows of a block whose number is settled; None where it is not."""

    near: int | None = None
    """Cached on the compute tier."""
    attended: int | None = None
    """Off the compute tier, attended by the CPU."""


Lanes = list[tuple[str, A]]
"""By name, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime(Generic[A]):
    """The lanes of all layers in one step, in seconds per sequence."""

    step: Step
    lanes: tuple[tuple[str, A], ...]
    blocked: tuple[tuple[str, A], ...]
    """What counts too where computing keeps the caller's thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse(Generic[A]):
    """What a sequence has on a tier in a phase, and the share of the limit (1 / N) it must stay under."""

    tier: Tier
    phase: Phase
    used: A
    activation_slots: A
    """What it has beside that where activations may move."""
    inverse_block: A


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """Layers that cost the same."""

    layer: LayerSpec
    nbytes: int
    """A whole layer's slab."""
    kept_tokens: int
    """Of a sequence, those whose K and V it keeps."""
    count: int


def layer_kinds(model: ModelSpec, bits: Bits, max_len: int) -> tuple[LayerKind, ...]:
    """The kinds of a model's layers for sequences of so many tokens, in order of appearance."""
    objects = Counter(id(layer) for layer in model.layers)
    alike: dict[tuple[int, ...], LayerKind] = {}
    for layer in {id(layer): layer for layer in model.layers}.values():
        nbytes = layer_slabs(layer, "g" * len(layer.tensors), bits, DTYPE_BYTES[model.dtype])["gpu"].nbytes
        kept = layer.kept_tokens(max_len)
        key = (nbytes, kept, layer.linear_flops_per_token, layer.expert_numel, layer.experts_per_token)
        count = objects[id(layer)] + (alike[key].count if key in alike else 0)
        alike[key] = LayerKind(layer=layer, nbytes=nbytes, kept_tokens=kept, count=count)
    return tuple(alike.values())
