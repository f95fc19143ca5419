"""Homes and slots of the hidden states that pass from layer to layer."""

from __future__ import annotations

import torch

from executor.arena import Arena
from executor.disk import DiskFile, DiskStore
from planner.layout import activations_resident, align
from planner.placement import TierRows
from planner.policy import Tier
from planner.sizes import ACTIVATION_SLOTS, Sizes


class ActivationHomes:
    """Rows of each gpu batch's hidden states on their tiers; a slot holds the whole gpu batch while it computes.

    That is so for prompts. One token's hidden states, in decode, are not worth a copy: their home is the compute tier.
    Hidden states are [rows, tokens, hidden] in the model's dtype; each tier's rows are one contiguous piece.
    """

    def __init__(self, sizes: Sizes, *, compute_device: torch.device, store: DiskStore | None) -> None:
        self.sizes = sizes
        self.dtype: torch.dtype = getattr(torch, sizes.model.dtype)
        register, host = compute_device.type == "cuda", torch.device("cpu")
        self._arenas: dict[Tier, Arena] = {
            "gpu": Arena(sizes.activations("gpu"), compute_device, register=False),
            "cpu": Arena(sizes.activations("cpu"), host, register=register),
        }
        disk_bytes = sizes.activations("disk")
        self.file: DiskFile | None = store.create("activations", disk_bytes) if store and disk_bytes else None
        self._token_arena = Arena(sizes.token_activations(), compute_device, register=False)
        self._token_homes = [
            self._token_arena.take(sizes.token_activation_rows(rows))
            for rows in sizes.placement.activation_rows
        ]
        slot_bytes, staging_bytes = sizes.activation_slot(), sizes.activation_staging()
        self._slot_arena = Arena(ACTIVATION_SLOTS * slot_bytes, compute_device, register=False)
        self._staging_arena = Arena(ACTIVATION_SLOTS * staging_bytes, host, register=register)
        self._slots = [self._slot_arena.take(slot_bytes) for _ in range(ACTIVATION_SLOTS)]
        self._staging = [self._staging_arena.take(staging_bytes) for _ in range(ACTIVATION_SLOTS)]

    def _offset(self, k: int, tier: Tier) -> int:
        before = self.sizes.placement.activation_rows[:k]
        return sum(self.sizes.activation_rows(dict(rows.counts())[tier]) for rows in before)

    def _shaped(self, data: torch.Tensor, rows: int, num_tokens: int) -> torch.Tensor:
        hidden = self.sizes.model.hidden_size
        nbytes = rows * num_tokens * hidden * self.dtype.itemsize
        return data[:nbytes].view(self.dtype).view(rows, num_tokens, hidden)

    def working(self, k: int, slot: int, rows: TierRows, num_tokens: int) -> torch.Tensor:
        """What the layers read and write: the slot, or the home itself where nothing moves."""
        if slot >= 0:
            return self._shaped(self._slots[slot], rows.total, num_tokens)
        if not self.is_resident(rows):
            return self._shaped(self._token_homes[k], rows.total, num_tokens)
        tier = self.sizes.compute_tier
        return self._shaped(self._arenas[tier].tensor[self._offset(k, tier) :], rows.total, num_tokens)

    def parts(
        self, k: int, slot: int, rows: TierRows, num_tokens: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(rows of the slot, their home or the disk rows' staging), for every tier that holds some."""
        working, first, found = self.working(k, slot, rows, num_tokens), 0, []
        for tier, count in rows.counts():
            if count:
                data = (
                    self._staging[slot]
                    if tier == "disk"
                    else self._arenas[tier].tensor[self._offset(k, tier) :]
                )
                found.append((working[first : first + count], self._shaped(data, count, num_tokens)))
            first += count
        return found

    def disk_piece(self, k: int, slot: int, rows: TierRows, num_tokens: int) -> tuple[int, torch.Tensor]:
        """(file offset, page-aligned bytes of the staging buffer) of the disk rows."""
        nbytes = align(rows.disk * num_tokens * self.sizes.model.hidden_size * self.dtype.itemsize)
        return self._offset(k, "disk"), self._staging[slot][:nbytes]

    def is_resident(self, rows: TierRows) -> bool:
        """Whether these rows, a prompt's too, never leave the compute tier."""
        return activations_resident(rows, self.sizes.compute_tier)

    def close(self) -> None:
        """Give the memory back; the store removes the file."""
        self._slots.clear()
        self._staging.clear()
        self._token_homes.clear()
        for arena in (*self._arenas.values(), self._slot_arena, self._staging_arena, self._token_arena):
            arena.close()
