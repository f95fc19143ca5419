"""WeightHomes: the layers' slabs on each tier and the ends, allocated once and filled once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch

from executor.arena import Arena
from executor.checkpoint import Checkpoint
from executor.disk import DiskFile, DiskStore
from executor.dummy_weights import fill_dummy
from executor.homes import DiskHome, Home, MemoryHome
from executor.load_checkpoint import Destination, load_checkpoint
from planner.layout import TENSOR_ALIGN_BYTES, Slab, TensorPlace
from planner.model import LayerSpec, TensorSpec
from planner.policy import TIERS, Tier
from planner.sizes import Sizes


class WeightHomes:
    """The home of every parameter, as the placement says.

    The gpu tier is on the compute device (in host memory where it is emulated), the cpu tier in host memory
    (pinned where the compute device is CUDA), the disk tier in the store's file "weights".
    """

    def __init__(
        self, sizes: Sizes, *, compute_device: torch.device, emulated: bool, store: DiskStore | None
    ) -> None:
        self.sizes = sizes
        self.dtype: torch.dtype = getattr(torch, sizes.model.dtype)
        host = torch.device("cpu")
        device = host if emulated else compute_device
        self._arenas: list[Arena] = []
        self._file: DiskFile | None = None
        self._disk_offsets = [0, *accumulate(slabs["disk"].nbytes for slabs in sizes.slabs)]
        self._ends: dict[str, torch.Tensor] = {}
        self._slabs: dict[Tier, list[torch.Tensor]] = {}
        try:
            if sizes.weights("disk"):
                assert store is not None, "a plan with weights on disk needs a DiskStore"
                self._file = store.create("weights", sizes.weights("disk"))
            self._ends = self._allocate_ends(device)
            self._allocate_slabs("gpu", device, register=False)
            self._allocate_slabs("cpu", host, register=compute_device.type == "cuda")
        except BaseException:
            self.close()
            raise

    def slab(self, j: int, tier: Tier) -> torch.Tensor:
        """Layer j's bytes on the gpu or cpu tier; uint8, empty where it has none there."""
        return self._slabs[tier][j]

    def disk_range(self, j: int) -> tuple[DiskFile, int, int]:
        """Layer j's bytes on disk: file, offset, size."""
        assert self._file is not None, "the placement has no weights on disk"
        return self._file, self._disk_offsets[j], self.sizes.slabs[j]["disk"].nbytes

    def end(self, name: str) -> torch.Tensor:
        """A parameter outside the layers, in its shape, on the compute device."""
        return self._ends[name]

    def load(self, checkpoint: Checkpoint, progress: Callable[[int], None]) -> None:
        """Fill every home from a checkpoint, in LOADING_BYTES of buffers.

        `progress` is told the bytes that came home, counted in the model's dtype even where quantised.
        """
        load_checkpoint(checkpoint, self._destinations(), self.dtype, progress)

    def load_dummy(self, seed: int, progress: Callable[[int], None] = lambda _: None) -> None:
        """Fill every home with random values that keep activations finite; the same for the same seed."""
        fill_dummy(self._destinations(), self.dtype, seed, progress)

    def close(self) -> None:
        """Give the memory back; the store removes the file. Views handed out keep theirs alive."""
        self._ends.clear()
        self._slabs.clear()
        while self._arenas:
            self._arenas.pop().close()

    def _allocate_ends(self, device: torch.device) -> dict[str, torch.Tensor]:
        arena = Arena(self.sizes.ends(), device, register=False)
        self._arenas.append(arena)
        return {
            tensor.name: arena.take(tensor.numel * self.dtype.itemsize, TENSOR_ALIGN_BYTES)
            .view(self.dtype)
            .view(tensor.shape)
            for tensor in self.sizes.model.ends
        }

    def _allocate_slabs(self, tier: Tier, device: torch.device, *, register: bool) -> None:
        arena = Arena(self.sizes.weights(tier), device, register=register)
        self._arenas.append(arena)
        self._slabs[tier] = [arena.take(slabs[tier].nbytes) for slabs in self.sizes.slabs]

    def _destinations(self) -> list[list[Destination]]:
        """Every parameter: each end by itself, then slab by slab, so that no two share a page of a file."""
        model = self.sizes.model
        batches = [[self._end_destination(tensor)] for tensor in model.ends]
        for j, layer in enumerate(model.layers):
            for tier in TIERS:
                slab = self.sizes.slabs[j][tier]
                if slab.nbytes:
                    home = self._home(j, tier)
                    batches.append([self._destination(j, layer, place, home) for place in slab.places])
        return batches

    def _end_destination(self, tensor: TensorSpec) -> Destination:
        home = MemoryHome(self._ends[tensor.name].view(-1).view(torch.uint8))
        return Destination(name=tensor.name, tensor=tensor, home=home, offset=0, quantised=False)

    def _destination(self, j: int, layer: LayerSpec, place: TensorPlace, home: Home) -> Destination:
        tensor = layer.tensors[place.index]
        return Destination(
            name=f"{self.sizes.model.layer_prefix}.{self.sizes.model.first_layer + j}.{tensor.name}",
            tensor=tensor,
            home=home,
            offset=place.offset,
            quantised=place.quantised,
        )

    def _home(self, j: int, tier: Tier) -> Home:
        if tier == "disk":
            file, start, _ = self.disk_range(j)
            return DiskHome(file, start)
        return MemoryHome(self.slab(j, tier))


def tensor_views(
    slab_bytes: torch.Tensor, slab: Slab, layer: LayerSpec, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """A slab's parameters by name: views in their shape and `dtype`, or packed uint8 where quantised."""
    views = {}
    for place in slab.places:
        tensor = layer.tensors[place.index]
        data = slab_bytes[place.offset : place.offset + place.nbytes]
        views[tensor.name] = data if place.quantised else data.view(dtype).view(tensor.shape)
    return views
