"""The shape of a placed plan: which of its bytes move, not how many; what the schedule's generator needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from planner.layout import activations_resident, is_streamed
from planner.ledger import Sizes
from planner.placement import group_tier
from planner.policy import Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """Which of one gpu batch's bytes move."""

    stored_cache: bool
    """Some rows' new K and V are copied from a slot to the cpu or disk tier."""
    disk_cache: bool
    loaded_cache: bool
    """Decode loads some rows into a slot of the compute tier."""
    stored_activation: bool
    disk_activation: bool


class LayerShape(NamedTuple):
    """Which of one layer's weights move."""

    on_link: bool
    """All or part of them cross the link."""
    on_disk: bool
    num_parts: int
    """Copies over the link at most; no more than there are gpu batches to spread them over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the generator needs to know of a plan: who moves, not how many bytes."""

    compute_tier: Tier
    layers: tuple[LayerShape, ...]
    batches: tuple[BatchShape, ...]
    weight_slots: int
    cache_slots: int


def shape_of(sizes: Sizes) -> Shape:
    """The schedule shape of a placed plan."""
    tier, placement = sizes.compute_tier, sizes.placement
    batches = []
    for cache, rows in zip(placement.cache_rows, placement.activation_rows, strict=True):
        held = [group for group, count in cache.counts() if count]
        batches.append(
            BatchShape(
                stored_cache=any(group_tier(group) != tier for group in held),
                disk_cache=any(group_tier(group) == "disk" for group in held),
                loaded_cache=any(is_streamed(group, tier) for group in held),
                stored_activation=not activations_resident(rows, tier),
                disk_activation=rows.disk > 0,
            )
        )
    return Shape(
        compute_tier=tier,
        layers=tuple(
            LayerShape(
                on_link=tier == "gpu" and sizes.streamed(j) > 0,
                on_disk=slabs["disk"].nbytes > 0,
                num_parts=min(sizes.weight_parts(j), len(batches)),
            )
            for j, slabs in enumerate(sizes.slabs)
        ),
        batches=tuple(batches),
        weight_slots=sizes.policy.weight_slots,
        cache_slots=sizes.policy.cache_slots,
    )
