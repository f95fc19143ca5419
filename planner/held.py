"""Held: what a placed plan's layers and gpu batches hold and move, in the amounts that cost formulas take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace

from planner.layout import activations_resident, is_resident, is_streamed, token_stride
from planner.placement import CACHE_GROUPS, CacheGroup, CacheRows, group_tier
from planner.shape import split_waves
from planner.sizes import Sizes
from planner.work import Counts, Held


def first_of_waves(sizes: Sizes) -> tuple[int, ...]:
    """The gpu batches with which a pass over the layers begins."""
    waves = split_waves(len(sizes.placement.cache_rows), sizes.policy.num_waves)
    return tuple(wave[0] for wave in waves)


def held_by_block(sizes: Sizes, j: int) -> Held[float]:
    """All that layer j does for one token.

    A later stage's first layer receives its hidden states: there is one load, and one store, less than layers.
    """
    held = held_by_batches(sizes, j, range(len(sizes.placement.cache_rows)))
    if j > 0 or sizes.model.has_embedding:
        return held
    counts = replace(held.counts, moved_activations=0.0, disk_activations=0.0)
    return replace(held, moved_rows=0.0, disk_rows=0.0, counts=counts)


def held_by_batches(sizes: Sizes, j: int, ks: Collection[int]) -> Held[float]:
    """What layer j does for some gpu batches and one token; a pass itself, its weights, belongs to a wave's first."""
    tier, passes = sizes.compute_tier, sum(k in ks for k in first_of_waves(sizes))
    batches = [sizes.placement.cache_rows[k] for k in ks]
    stored, streamed, attended, on_disk = (
        _cache_part(sizes, batches, [group for group in CACHE_GROUPS if wanted(group)])
        for wanted in (
            lambda group: not is_resident(group, tier),
            lambda group: is_streamed(group, tier),
            lambda group: group.endswith("_attend"),
            lambda group: group_tier(group) == "disk",
        )
    )
    graphed = sizes.graphs.of_layer(j) & set(ks)
    rows = [sizes.placement.activation_rows[k] for k in ks]
    moved = [batch for batch in rows if not activations_resident(batch, tier)]
    cpu_bytes = passes * sizes.slabs[j]["cpu"].nbytes if tier == "gpu" else 0
    disk_bytes = passes * sizes.slabs[j]["disk"].nbytes
    return Held(
        passes=float(passes),
        batches=float(len(batches)),
        replayed=len(graphed) / max(1, len(batches)),
        num_joined=len(sizes.slabs) if sizes.joins_layers else 1,
        num_graphs=float(sizes.graphs.num_graphs(j, ks)),
        graphed_attended=float(sum(sizes.placement.cache_rows[k].cpu_attend > 0 for k in graphed)),
        cpu_weight_bytes=float(cpu_bytes),
        disk_weight_bytes=float(disk_bytes),
        near_rows=sum(batch.total for batch in batches) - attended.rows,
        attended_rows=attended.rows,
        streamed_token_bytes=streamed.token_bytes,
        attended_token_bytes=attended.token_bytes,
        disk_token_bytes=on_disk.token_bytes,
        kept_tokens=sizes.kept[j],
        moved_rows=float(sum(batch.total - dict(batch.counts())[tier] for batch in moved)),
        disk_rows=float(sum(batch.disk for batch in moved)),
        counts=Counts(
            link_weights=float(passes * (cpu_bytes + disk_bytes > 0)),
            disk_weights=float(passes * (disk_bytes > 0)),
            stored_cache=stored.batches,
            streamed_cache=streamed.batches,
            attended_cache=attended.batches,
            split_cache=float(
                sum(0 < batch.cpu_attend + batch.disk_attend < batch.total for batch in batches)
            ),
            disk_cache=on_disk.batches,
            moved_activations=float(len(moved)),
            disk_activations=float(sum(batch.disk > 0 for batch in moved)),
        ),
    )


def of_share(held: Held[float], share: float) -> Held[float]:
    """The same for a share of the gpu batches, taken as alike; the weights are loaded for them as for all."""
    whole = {"counts", "passes", "cpu_weight_bytes", "disk_weight_bytes", "kept_tokens", "num_joined"}
    scaled = {f.name: getattr(held, f.name) * share for f in fields(held) if f.name not in whole}
    loads = {"link_weights", "disk_weights"}
    counts = {f.name: getattr(held.counts, f.name) * share for f in fields(Counts) if f.name not in loads}
    return replace(held, **scaled, counts=replace(held.counts, **counts))


@dataclass(frozen=True, slots=True)
class _CachePart:
    """Some cache groups of some gpu batches: batches with such rows, rows, bytes of one token of one layer."""

    batches: float
    rows: float
    token_bytes: float


def _cache_part(sizes: Sizes, batches: list[CacheRows], groups: list[CacheGroup]) -> _CachePart:
    counts = [[(group, getattr(batch, group)) for group in groups] for batch in batches]
    held = [(group, rows) for batch in counts for group, rows in batch if rows]
    return _CachePart(
        batches=float(sum(any(rows for _, rows in batch) for batch in counts)),
        rows=float(sum(rows for _, rows in held)),
        token_bytes=float(sum(token_stride(group, rows, sizes.vector_bytes) for group, rows in held)),
    )
