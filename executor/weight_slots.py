"""Slots that streamed layers are loaded into, and the views that a layer's parameters become."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from executor.arena import Arena
from executor.transfer import copy_bytes
from executor.weights import WeightHomes, tensor_views
from hwprofiles.probes.quantize import Dequantise
from planner.layout import align
from planner.schedule import Slots, Task
from planner.sizes import WEIGHT_STAGING, Sizes


class WeightSlots:
    """Fills slots from homes, and hands out a layer's tensors wherever they are."""

    def __init__(self, sizes: Sizes, homes: WeightHomes, *, compute_device: torch.device) -> None:
        self.sizes, self.homes = sizes, homes
        self.dtype: torch.dtype = getattr(torch, sizes.model.dtype)
        count, slot_bytes, staging_bytes = (
            sizes.policy.weight_slots,
            sizes.weight_slot(),
            sizes.weight_staging(),
        )
        register = compute_device.type == "cuda"
        self._slot_arena = Arena(count * slot_bytes, compute_device, register=False)
        self._staging_arena = Arena(WEIGHT_STAGING * staging_bytes, torch.device("cpu"), register=register)
        self._dequantised = Arena(sizes.dequantised_weights(), compute_device, register=False)
        self._slots = [self._slot_arena.take(slot_bytes) for _ in range(count)]
        self._staging = [self._staging_arena.take(staging_bytes) for _ in range(WEIGHT_STAGING)]
        self._views: dict[tuple[int, int], tuple[dict[str, torch.Tensor], Dequantise]] = {}
        """By layer and slot: making them anew for every pass would take a tenth of a small layer's time."""
        self._copies: dict[tuple[int, int, int, int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        """By layer, slot, staging buffer, part and number of parts, likewise the ends of copies."""

    def read_disk(self, j: int, slots: Slots) -> int:
        """Layer j's disk slab into its staging buffer, or straight into the slot of a CPU that computes."""
        file, offset, nbytes = self.homes.disk_range(j)
        target = self._staging[slots.staging] if slots.staging >= 0 else self._slots[slots.weight]
        file.read(offset, target[:nbytes])
        return nbytes

    def copy_to_slot(self, task: Task) -> int:
        """One part of a layer's streamed bytes into its slot; the bytes."""
        key = task.j, task.slots.weight, task.slots.staging, task.part, task.num_parts
        if key not in self._copies:
            self._copies[key] = list(self._part_copies(task))
        return sum(copy_bytes(target, source) for target, source in self._copies[key])

    def _part_copies(self, task: Task) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(target, source): the cpu slab comes first, the staged disk slab after."""
        slot, split = self._slots[task.slots.weight], self.sizes.slabs[task.j]["cpu"].nbytes
        start, stop = _part(self.sizes.streamed(task.j), task)
        if start < split:
            source = self.homes.slab(task.j, "cpu")[start : min(stop, split)]
            yield slot[start : start + source.numel()], source
        if stop > split:
            first = max(start, split)
            yield slot[first:stop], self._staging[task.slots.staging][first - split : stop - split]

    def tensors(self, j: int, slots: Slots) -> dict[str, torch.Tensor]:
        """Layer j's parameters by name, in the model's dtype, dequantised where they are packed."""
        views, dequantise = self._views_in(j, slots.weight)
        dequantise()
        return views

    def prepare(self) -> None:
        """Make all views of packed layers, before a run: what unpacks them is copied to the device, which waits."""
        if self.sizes.policy.weight_bits == 4:
            for j in range(len(self.sizes.slabs)):
                for slot in range(len(self._slots)) if self.sizes.streamed(j) else (-1,):
                    self._views_in(j, slot)

    def _views_in(self, j: int, slot: int) -> tuple[dict[str, torch.Tensor], Dequantise]:
        known = self._views.get((j, slot))
        if known is None:
            known = self._views[j, slot] = self._unpacked(j, self._packed(j, slot))
        return known

    def _packed(self, j: int, slot: int) -> dict[str, torch.Tensor]:
        """Views of layer j's parameters, as they are kept, where they lie on the compute tier."""
        layer, slabs = self.sizes.model.layers[j], self.sizes.slabs[j]
        views: dict[str, torch.Tensor] = {}
        tier, start = self.sizes.compute_tier, 0
        if slabs[tier].nbytes:
            views.update(tensor_views(self.homes.slab(j, tier), slabs[tier], layer, self.dtype))
        for other in ("cpu", "disk"):
            if other != tier and slabs[other].nbytes:
                data = self._slots[slot][start : start + slabs[other].nbytes]
                views.update(tensor_views(data, slabs[other], layer, self.dtype))
                start += slabs[other].nbytes
        return views

    def _unpacked(
        self, j: int, packed: dict[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], Dequantise]:
        """Views of layer j's parameters as they are computed with, and what fills those that are packed."""
        found, used = dict(packed), 0
        vectors: list[tuple[torch.Tensor, int, torch.Tensor]] = []
        for tensor in self.sizes.model.layers[j].tensors:
            if tensor.quantizable and self.sizes.policy.weight_bits == 4:
                nbytes = tensor.numel * self.dtype.itemsize
                out = self._dequantised.tensor[used : used + nbytes].view(self.dtype)
                vectors.append((packed[tensor.name], tensor.numel, out))
                found[tensor.name] = out.view(tensor.shape)
                used += align(nbytes, 256)
        return found, Dequantise(vectors)

    def close(self) -> None:
        """Give the memory back."""
        self._views.clear()
        self._copies.clear()
        self._slots.clear()
        self._staging.clear()
        for arena in (self._slot_arena, self._staging_arena, self._dequantised):
            arena.close()


def _part(num_bytes: int, task: Task) -> tuple[int, int]:
    """(start, stop) of a task's share of a layer's bytes, on whole pages."""
    size = align(-(-num_bytes // task.num_parts))
    return min(task.part * size, num_bytes), min((task.part + 1) * size, num_bytes)
