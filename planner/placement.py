"""Placement: a policy's fractions made real, as whole tensors and whole sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hwprofiles.errors import UserError
from planner.policy import Split, Tier

TIER_LETTER: dict[str, Tier] = {"g": "gpu", "c": "cpu", "d": "disk"}
CacheGroup = Literal["gpu", "cpu", "cpu_attend", "disk", "disk_attend"]
CACHE_GROUPS: tuple[CacheGroup, ...] = ("gpu", "cpu", "cpu_attend", "disk", "disk_attend")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRows:
    """Sequences of one gpu batch by where their cache lives and who attends to it, in row order.

    `gpu`, `cpu` and `disk` rows are attended on the compute device (loaded first where they live elsewhere);
    the `_attend` rows on the CPU.
    """

    gpu: int
    cpu: int
    cpu_attend: int
    disk: int
    disk_attend: int

    @property
    def held(self) -> tuple[CacheGroup, ...]:
        """Groups that some rows are in."""
        return tuple(group for group, count in self.counts() if count)

    def counts(self) -> tuple[tuple[CacheGroup, int], ...]:
        """(group, rows), in row order."""
        return tuple((group, getattr(self, group)) for group in CACHE_GROUPS)

    @property
    def total(self) -> int:
        """Rows of the gpu batch."""
        return self.gpu + self.cpu + self.cpu_attend + self.disk + self.disk_attend

    def first(self, rows: int) -> CacheRows:
        """Of a smaller gpu batch; rows are cut from the slowest tier up."""
        return CacheRows(**dict(_first(self.counts(), rows)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRows:
    """Sequences of one gpu batch by the tier that holds their activations, in row order."""

    gpu: int
    cpu: int
    disk: int

    def counts(self) -> tuple[tuple[Tier, int], ...]:
        """(tier, rows), in row order."""
        return (("gpu", self.gpu), ("cpu", self.cpu), ("disk", self.disk))

    @property
    def total(self) -> int:
        """Rows of the gpu batch."""
        return self.gpu + self.cpu + self.disk

    def first(self, rows: int) -> TierRows:
        """Of a smaller gpu batch; rows are cut from the slowest tier up."""
        return TierRows(**dict(_first(self.counts(), rows)))


def group_tier(group: CacheGroup) -> Tier:
    """The tier a cache group lives on."""
    return "disk" if group.startswith("disk") else "cpu" if group.startswith("cpu") else "gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which tensor and which row lives where, and the splits this amounts to."""

    weight_tiers: tuple[str, ...]
    """One string a layer, one letter a tensor in the layer's order: g, c or d."""
    cache_rows: tuple[CacheRows, ...]
    """One entry a gpu batch."""
    activation_rows: tuple[TierRows, ...]
    weights: Split
    cache: Split
    activations: Split

    def __post_init__(self) -> None:
        for j, letters in enumerate(self.weight_tiers):
            if set(letters) - set(TIER_LETTER):
                raise UserError(
                    f"weight_tiers of layer {j} is {letters!r}; only the letters g, c and d are known"
                )
        if len(self.cache_rows) != len(self.activation_rows):
            raise UserError(
                f"cache_rows has {len(self.cache_rows)} gpu batches, activation_rows {len(self.activation_rows)}"
            )

    def first(self, batch_rows: Sequence[int]) -> Placement:
        """Of a smaller block, whose gpu batches have so many rows."""
        return replace(
            self,
            cache_rows=tuple(kept.first(n) for kept, n in zip(self.cache_rows, batch_rows, strict=False)),
            activation_rows=tuple(
                kept.first(n) for kept, n in zip(self.activation_rows, batch_rows, strict=False)
            ),
        )


def _first(counts: Sequence[tuple[str, int]], rows: int) -> Iterator[tuple[str, int]]:
    for name, count in counts:
        yield name, min(count, rows)
        rows -= min(count, rows)
