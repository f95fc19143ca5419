"""The shape of a placed plan: which of its bytes move, not how many; what the schedule's generator needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from planner.layout import activations_resident, is_loaded, takes_slot
from planner.placement import group_tier
from planner.policy import Tier
from planner.sizes import Sizes
from planner.tasks import Task, TaskKind


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """Which of one gpu batch's bytes move."""

    stored_cache: bool
    """Some rows' new K and V are copied from a slot to the cpu or disk tier."""
    disk_cache: bool
    loaded_cache: bool
    """Decode loads some rows into a slot of the compute tier."""
    attended_cache: bool
    """Decode attention to some rows is the CPU's, beside a GPU."""
    near_cache: bool
    """Decode attention to some rows is the compute device's."""
    stored_activation: bool
    """Some rows' hidden states of a prompt leave the compute tier between layers."""
    disk_activation: bool


class LayerShape(NamedTuple):
    """Which of one layer's weights move."""

    on_link: bool
    """All or part of them cross the link."""
    on_disk: bool
    num_parts: int
    """Copies over the link at most; no more than there are gpu batches to spread them over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A stage's place in a pipeline; alone, it is first and last."""

    is_first: bool = True
    is_last: bool = True
    over_link: bool = False
    """Hidden states pass through host memory, from where a copy of its own takes them over the link."""
    incoming_slots: int = 0
    outgoing_slots: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the generator needs to know of a plan: who moves, not how many bytes."""

    compute_tier: Tier
    layers: tuple[LayerShape, ...]
    batches: tuple[BatchShape, ...]
    weight_slots: int
    cache_slots: int
    waves: tuple[tuple[int, ...], ...]
    """Gpu batches that share a pass over the layers; one wave, but for a pipeline."""
    place: Place = Place()
    joins_layers: bool = False
    """Decode computes all layers of a gpu batch as one task."""

    def ids_known_after(self, task: Task) -> int | None:
        """The token whose ids are on this stage once the task is done; None for most tasks."""
        at_head, is_prelude_of_next = task.j == len(self.layers), task.i > 0 and not self.place.is_first
        match task.kind, task.resource:
            case (TaskKind.COMPUTE, _) | (TaskKind.RECEIVE, "net_in") if at_head:
                return task.i
            case (TaskKind.RECEIVE, "net_in") if is_prelude_of_next and not self.place.is_last:
                return task.i - 1  # they come with the next token's hidden states
        return None

    def is_final(self, task: Task) -> bool:
        """Whether a stage is done with a token of a gpu batch after this task; the first, once it knows the ids."""
        if self.place.is_first or self.place.is_last:
            return self.ids_known_after(task) is not None
        return task.kind is TaskKind.SEND and task.resource == "net_out"


def shape_of(sizes: Sizes) -> Shape:
    """The schedule shape of a placed plan."""
    tier, placement = sizes.compute_tier, sizes.placement
    batches = []
    for cache, rows in zip(placement.cache_rows, placement.activation_rows, strict=True):
        held = cache.held
        batches.append(
            BatchShape(
                stored_cache=takes_slot(cache, tier),
                disk_cache=any(group_tier(group) == "disk" for group in held),
                loaded_cache=is_loaded(cache, tier),
                near_cache=not all(group.endswith("_attend") for group in held),
                attended_cache=tier == "gpu" and any(group.endswith("_attend") for group in held),
                stored_activation=not activations_resident(rows, tier),
                disk_activation=rows.disk > 0,
            )
        )
    waves = split_waves(len(batches), sizes.policy.num_waves)
    return Shape(
        compute_tier=tier,
        layers=tuple(
            LayerShape(
                on_link=tier == "gpu" and sizes.streamed(j) > 0,
                on_disk=slabs["disk"].nbytes > 0,
                num_parts=min(sizes.weight_parts(j), len(waves[-1])),
            )
            for j, slabs in enumerate(sizes.slabs)
        ),
        batches=tuple(batches),
        weight_slots=sizes.policy.weight_slots,
        cache_slots=sizes.policy.cache_slots,
        waves=waves,
        place=_place(sizes),
        joins_layers=sizes.joins_layers,
    )


def split_waves(num_batches: int, num_waves: int) -> tuple[tuple[int, ...], ...]:
    """Consecutive gpu batches in as many parts, as even as can be; fewer where there are not enough."""
    num_waves = min(num_waves, num_batches)
    bounds = [num_batches * wave // num_waves for wave in range(num_waves + 1)]
    return tuple(tuple(range(first, stop)) for first, stop in pairwise(bounds))


def _place(sizes: Sizes) -> Place:
    return Place(
        is_first=sizes.model.has_embedding,
        is_last=sizes.model.has_head,
        over_link=sizes.messages.over_link,
        incoming_slots=sizes.messages.incoming_slots,
        outgoing_slots=sizes.messages.outgoing_slots,
    )
