"""Random weights of a model's shapes, at the speed of the memory: one random block, laid end to end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from threading import Event, Lock

import torch

from executor.arena import Arena
from executor.load_checkpoint import Destination, Progress
from executor.workers import num_workers, share_out
from hwprofiles.packing import GROUP_SIZE, quantised_bytes
from hwprofiles.probes.quantize import quantise
from hwprofiles.units import MIB
from planner.layout import PAGE_BYTES
from planner.model import TensorSpec

_BLOCK_NUMEL = 2**18 + GROUP_SIZE
"""Not a power of two, so that the rows of a matrix do not repeat in step."""
_PUT_BYTES = 2 * MIB
_MAX_THREADS = 4

Kind = tuple[float, float, bool]
"""Mean, standard deviation, whether quantised."""


def fill_dummy(
    batches: Sequence[Sequence[Destination]], dtype: torch.dtype, seed: int, progress: Progress
) -> None:
    """Fill every destination: matrices normal with variance 1 / fan-in, norms 1, biases 0.

    With pre-norm layers hidden states then grow with the root of the depth, so they stay finite. Destinations
    of one batch are filled one after the other, different batches side by side; `progress` as for load_checkpoint.
    """
    tiles = _all_tiles(batches, dtype, seed)
    threads, size = num_workers(_MAX_THREADS), _PUT_BYTES + 2 * PAGE_BYTES
    arena = Arena(threads * size, torch.device("cpu"), register=False)
    bounces, lock = [arena.take(size) for _ in range(threads)], Lock()

    def fill(batch: Sequence[Destination], stopping: Event) -> None:
        bounce = bounces.pop()
        try:
            for destination in batch:
                if stopping.is_set():
                    return
                _lay(destination, tiles[_kind(destination)], dtype, bounce)
                with lock:
                    progress(destination.tensor.numel * dtype.itemsize)
        finally:
            bounces.append(bounce)

    try:
        share_out(fill, batches, threads=threads)
    finally:
        bounces.clear()
        arena.close()


def _all_tiles(
    batches: Sequence[Sequence[Destination]], dtype: torch.dtype, seed: int
) -> dict[Kind, tuple[torch.Tensor, ...]]:
    """What each kind of parameter is laid with."""
    normal = torch.randn(_BLOCK_NUMEL, generator=torch.Generator().manual_seed(seed))
    tiles: dict[Kind, tuple[torch.Tensor, ...]] = {}

    def make(kind: Kind, _: Event) -> None:
        mean, deviation, quantised = kind
        values = (normal * deviation + mean).to(dtype)
        tiles[kind] = _packed_tiles(values) if quantised else (_tile(values),)

    kinds = {_kind(destination) for batch in batches for destination in batch}
    share_out(make, sorted(kinds), threads=1)
    return tiles


def _kind(destination: Destination) -> Kind:
    return (*_distribution(destination.tensor), destination.quantised)


def _distribution(tensor: TensorSpec) -> tuple[float, float]:
    """Mean and standard deviation of a parameter's values."""
    if len(tensor.shape) == 1:
        return (1.0, 0.0) if tensor.name.endswith("weight") else (0.0, 0.0)
    return 0.0, 1 / math.sqrt(tensor.shape[-1])


def _packed_tiles(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Packed groups and constants, each laid end to end."""
    packed = torch.empty(quantised_bytes(values.numel()), dtype=torch.uint8)
    quantise(values, packed)
    split = values.numel() // 2
    return _tile(packed[:split]), _tile(packed[split:])


def _tile(values: torch.Tensor) -> torch.Tensor:
    """At least _PUT_BYTES of the block's bytes, a whole number of blocks."""
    data = values.contiguous().view(torch.uint8)
    return data.repeat(-(-_PUT_BYTES // data.numel()))


def _lay(
    destination: Destination, tiles: tuple[torch.Tensor, ...], dtype: torch.dtype, bounce: torch.Tensor
) -> None:
    """The first tile over the values, a second one over the quantised tensor's constants."""
    numel = destination.tensor.numel
    sizes = [numel * dtype.itemsize]
    if destination.quantised:
        groups = -(-numel // GROUP_SIZE)
        sizes = [groups * GROUP_SIZE // 2, quantised_bytes(numel) - groups * GROUP_SIZE // 2]
    offset = destination.offset
    for tile, size in zip(tiles, sizes, strict=True):
        for start in range(0, size, tile.numel()):
            destination.home.put(offset + start, tile[: min(tile.numel(), size - start)], bounce)
        offset += size
