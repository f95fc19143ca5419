"""KV homes and slots: rows over tiers, laid out [place, K or V, row, vector]; the first t tokens are one copy.

A layer keeps so many tokens of a row, and token t lies in place t mod that many: a sliding window's new token takes
the place of the oldest one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from executor.arena import Arena
from executor.disk import DiskFile, DiskStore
from hwprofiles.probes.quantize import dequantise, quantise_pair
from planner.layout import cache_slot_offsets, group_bytes, token_stride
from planner.placement import CacheGroup, CacheRows, group_tier
from planner.policy import Tier
from planner.sizes import Sizes


@dataclass(frozen=True, slots=True)
class KvView:
    """K and V of some rows, wherever they are; `data` is uint8 and starts at place 0."""

    data: torch.Tensor
    rows: int
    kept: int
    """Tokens of a row that there are places for."""
    stride: int
    """Bytes from one place to the next."""
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    quantised: bool
    vector_bytes: int

    def places(self, start: int, stop: int) -> slice:
        """Where tokens [start, stop) are, which must lie side by side: those from 0 on, or a single one."""
        first = start % self.kept
        return slice(first, first + min(stop - start, self.kept))

    def token_bytes(self, start: int, stop: int) -> torch.Tensor:
        """The contiguous bytes of tokens [start, stop), as far as they are kept."""
        places = self.places(start, stop)
        return self.data[places.start * self.stride : places.stop * self.stride]

    def write(self, start: int | torch.Tensor, row: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put [rows, heads, tokens, head_dim] K and V at token `start` of the rows from `row` on.

        A `start` on the view's own device, [1] int64, is one token's, of a view that keeps all.
        """
        if isinstance(start, torch.Tensor):
            room = self.tokens(0, self.kept, row, key.shape[0])
            new = torch.empty_like(room[:1], memory_format=torch.contiguous_format)
            self._put(key, value, new)
            room.index_copy_(0, start, new)
            return
        stop = start + key.shape[2]
        token = max(start, stop - self.kept)  # of a prompt longer than a window only its end is kept
        while token < stop:
            until = min(stop, token + self.kept - token % self.kept)
            new_tokens = slice(token - start, until - start)
            self._write_run(token, row, key[:, :, new_tokens], value[:, :, new_tokens])
            token = until

    def _write_run(self, start: int, row: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Tokens that lie side by side."""
        target = self.tokens(start, start + key.shape[2], row, key.shape[0])
        if target.device == key.device:
            self._put(key, value, target)
        else:
            both = torch.empty(target.shape, dtype=target.dtype, device=key.device)
            self._put(key, value, both)
            target.copy_(both, non_blocking=True)

    def _put(self, key: torch.Tensor, value: torch.Tensor, target: torch.Tensor) -> None:
        """Into [tokens, 2, rows, vector], quantised where the cache is."""
        if self.quantised:
            quantise_pair(key, value, target)
            return
        shaped = target.unflatten(-1, (self.num_heads, self.head_dim))
        shaped[:, 0] = key.permute(2, 0, 1, 3)
        shaped[:, 1] = value.permute(2, 0, 1, 3)

    def read(self, start: int, stop: int, row: int, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [rows, heads, places, head_dim] of tokens [start, stop): views where unquantised."""
        values = self.values(start, stop, row, num_rows)
        shaped = values.unflatten(-1, (self.num_heads, self.head_dim)).permute(1, 2, 3, 0, 4)
        return shaped[0], shaped[1]

    def values(self, start: int, stop: int, row: int, num_rows: int) -> torch.Tensor:
        """[places, 2, rows, heads * head_dim] in the model's dtype: a view where unquantised."""
        tokens = self.tokens(start, stop, row, num_rows)
        if not self.quantised:
            return tokens
        n = self.num_heads * self.head_dim
        values = torch.empty(*tokens.shape[:3], n, dtype=self.dtype, device=tokens.device)
        dequantise(tokens, n, values)
        return values

    def tokens(self, start: int, stop: int, row: int, num_rows: int) -> torch.Tensor:
        """[places, 2, rows, vector] of tokens [start, stop) as they are kept: the model's dtype, or packed bytes."""
        data = self.token_bytes(start, stop)
        typed = data if self.quantised else data.view(self.dtype)
        size, places = typed.element_size(), self.places(start, stop)
        vector = self.vector_bytes // size
        strides = (self.stride // size, self.rows * vector, vector, 1)
        return typed.as_strided(
            (places.stop - places.start, 2, num_rows, vector), strides, typed.storage_offset() + row * vector
        )


class CacheHomes:
    """The homes of all cache groups: an arena on gpu and cpu, a file on disk; and the slots groups are loaded into."""

    def __init__(self, sizes: Sizes, *, compute_device: torch.device, store: DiskStore | None) -> None:
        self.sizes = sizes
        self.dtype = getattr(torch, sizes.model.dtype)
        host = torch.device("cpu")
        register = compute_device.type == "cuda"
        self._arenas = {
            "gpu": Arena(sizes.cache("gpu"), compute_device, register=False),
            "cpu": Arena(sizes.cache("cpu"), host, register=register),
        }
        self._cpu_on_device = self._arenas["cpu"].as_kernels_see_it()
        disk_bytes = sizes.cache("disk")
        self.file: DiskFile | None = store.create("cache", disk_bytes) if store and disk_bytes else None
        slots = sizes.policy.cache_slots
        self._slot_arena = Arena(slots * sizes.cache_slot(), compute_device, register=False)
        self._staging_arena = Arena(slots * sizes.cache_staging(), host, register=register)
        self.slots = [self._slot_arena.take(sizes.cache_slot()) for _ in range(slots)]
        self.staging = [self._staging_arena.take(sizes.cache_staging()) for _ in range(slots)]
        self._regions = self._all_regions()

    def _all_regions(self) -> dict[tuple[int, int, CacheGroup], tuple[int, int]]:
        """(j, k, group) -> (offset in its tier, bytes)."""
        used: dict[Tier, int] = {"gpu": 0, "cpu": 0, "disk": 0}
        regions = {}
        for j, kept in enumerate(self.sizes.kept):
            for k, rows in enumerate(self.sizes.placement.cache_rows):
                for group, count in rows.counts():
                    if count:
                        nbytes = group_bytes(group, count, self.sizes.vector_bytes, kept)
                        regions[j, k, group] = (used[group_tier(group)], nbytes)
                        used[group_tier(group)] += nbytes
        return regions

    def home(self, j: int, k: int, group: CacheGroup, rows: int) -> KvView:
        """A group's home on the gpu or cpu tier, for `rows` rows (no more than planned)."""
        return self._home(self._arenas[group_tier(group)].tensor, j, k, group, rows)

    def home_on_device(self, j: int, k: int, group: CacheGroup, rows: int) -> KvView:
        """A home on the cpu tier as the compute device addresses it."""
        return self._home(self._cpu_on_device, j, k, group, rows)

    def _home(self, tier: torch.Tensor, j: int, k: int, group: CacheGroup, rows: int) -> KvView:
        start, nbytes = self._regions[j, k, group]
        return self._view(tier[start : start + nbytes], j, group, rows)

    def disk_offset(self, j: int, k: int, group: CacheGroup) -> int:
        """Where a disk group starts in the cache file."""
        return self._regions[j, k, group][0]

    def in_slot(
        self, j: int, slot: int, rows: CacheRows, num_tokens: int, *, prefill: bool
    ) -> dict[CacheGroup, KvView]:
        """The groups a slot of the compute tier holds while it works on these rows in layer j."""
        num_places = min(num_tokens, self.sizes.kept[j])
        offsets = cache_slot_offsets(
            rows, self.sizes.vector_bytes, num_places, self.sizes.compute_tier, prefill=prefill
        )
        counts = dict(rows.counts())
        return {
            group: self._view(self.slots[slot][offset : offset + nbytes], j, group, counts[group])
            for group, (offset, nbytes) in offsets.items()
        }

    def in_staging(self, j: int, slot: int, rows: CacheRows) -> dict[CacheGroup, KvView]:
        """The disk groups of a slot in the host buffer they pass through."""
        views, used = {}, 0
        for group, count in rows.counts():
            if count and group_tier(group) == "disk" and self.sizes.compute_tier == "gpu":
                nbytes = group_bytes(group, count, self.sizes.vector_bytes, self.sizes.kept[j])
                views[group] = self._view(self.staging[slot][used : used + nbytes], j, group, count)
                used += nbytes
        return views

    def _view(self, data: torch.Tensor, j: int, group: CacheGroup, rows: int) -> KvView:
        model, vector_bytes = self.sizes.model, self.sizes.vector_bytes
        return KvView(
            data=data,
            rows=rows,
            kept=self.sizes.kept[j],
            stride=token_stride(group, rows, vector_bytes),
            num_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            dtype=self.dtype,
            quantised=self.sizes.policy.kv_bits == 4,
            vector_bytes=vector_bytes,
        )

    def close(self) -> None:
        """Give the memory back; the store removes the file."""
        self.slots.clear()
        self.staging.clear()
        self._cpu_on_device = torch.empty(0, dtype=torch.uint8)
        for arena in (*self._arenas.values(), self._slot_arena, self._staging_arena):
            arena.close()
