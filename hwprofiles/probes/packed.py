"""Packed: how fast 4-bit values are unpacked, packed and attended to, by the functions that a run calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch

from hwprofiles.budget import Slices
from hwprofiles.packing import quantised_bytes
from hwprofiles.points import Packed, Rate
from hwprofiles.probes.buffers import fill_random
from hwprofiles.probes.compute import synchronize
from hwprofiles.probes.cores import mean_over_cores
from hwprofiles.probes.cpu_attention import Decode
from hwprofiles.probes.kernels import AMPERE, usable
from hwprofiles.probes.layers import sweep_core
from hwprofiles.probes.quantize import dequantise, quantise_pair
from hwprofiles.probes.timing import MIN_REPEATS, measured_rate, median_seconds, rounds_of

PACKED_POINTS = {"cpu": 2, "cuda": 4}
_MATRIX, _MATRICES = {"cpu": 2**22, "cuda": 2**26}, {"cpu": 16, "cuda": 1}
"""Values of a matrix, and how many take turns: a layer's are not in a cache when they are unpacked."""
_DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
_HEADS, _HEAD_SIZE = 32, 128
_ROWS = {"cpu": 8, "cuda": 32}
_PROMPT = 512
_FEW = 2**12
"""Values that take a GPU less time than the host to ask for them."""


def measure_packed(device: torch.device, slice_s: Slices) -> Packed:
    """Values per second on one device, in the dtype in which it computes with most models."""
    with torch.inference_mode():
        return Packed(
            unpack_values_per_s=_unpack_rate(device, slice_s(f"{device} unpacking 4 bits")),
            pack_values_per_s=_pack_rate(device, slice_s(f"{device} packing 4 bits")),
            attend_values_per_s=_attend_rate(device, slice_s) if device.type == "cuda" else None,
            issue_s=_issue_seconds(device, slice_s) if device.type == "cuda" else None,
        )


def _unpack_rate(device: torch.device, slice_s: float) -> Rate:
    numel = _MATRIX[device.type]
    turns = itertools.cycle([_unpacking(numel, device) for _ in range(_MATRICES[device.type])])

    def unpack_next() -> None:
        next(turns)()

    return measured_rate(rounds_of(unpack_next, lambda: synchronize(device)), numel, slice_s)


def _unpacking(numel: int, device: torch.device) -> Callable[[], None]:
    source = fill_random(torch.empty(numel, dtype=_DTYPE[device.type], device=device))
    packed = torch.empty(1, 2, 1, quantised_bytes(numel), dtype=torch.uint8, device=device)
    quantise_pair(source.view(1, 1, 1, numel), source.view(1, 1, 1, numel), packed)
    return partial(dequantise, packed[0, 0, 0], numel, source)


def _pack_rate(device: torch.device, slice_s: float) -> Rate:
    """K and V of prompts into a cache."""
    rows, tokens = _ROWS[device.type], _PROMPT
    values, cache = _random_heads(rows, tokens, device), _cache(rows, tokens, device)
    run = rounds_of(lambda: quantise_pair(values, values, cache), lambda: synchronize(device))
    return measured_rate(run, 2 * values.numel(), slice_s)


def _attend_rate(device: torch.device, slice_of: Slices) -> Rate | None:
    """K and V of one query token a row, read packed as they lie; None where a run unpacks them first."""
    slice_s = slice_of(f"{device} attention to 4 bits")
    if not usable(device, AMPERE):
        return None
    from hwprofiles.probes.kernels.attention import attend  # noqa: PLC0415 - needs Triton

    rows, tokens = _ROWS[device.type], _PROMPT
    cache = _cache(rows, tokens, device)
    values, query = _random_heads(rows, tokens, device), _random_heads(rows, 1, device)
    quantise_pair(values, values, cache)
    how = Decode(num_heads=_HEADS, start=0, pads=None, scale=_HEAD_SIZE**-0.5, softcap=None)
    run = rounds_of(partial(attend, query, cache, torch.empty_like(query), how), lambda: synchronize(device))
    return measured_rate(run, 2 * values.numel(), slice_s)


def _issue_seconds(device: torch.device, slice_of: Slices) -> Rate:
    """Host time of starting one such function, with caches as `layers.py` has them."""
    slice_s, unpack, sweep = slice_of(f"{device} starting a kernel"), _unpacking(_FEW, device), sweep_core()
    unpack()
    found = mean_over_cores(lambda: median_seconds(unpack, MIN_REPEATS, sweep), slice_s)
    synchronize(device)
    return found


def _cache(rows: int, tokens: int, device: torch.device) -> torch.Tensor:
    nbytes = quantised_bytes(_HEADS * _HEAD_SIZE)
    return torch.empty(tokens, 2, rows, nbytes, dtype=torch.uint8, device=device)


def _random_heads(rows: int, tokens: int, device: torch.device) -> torch.Tensor:
    return fill_random(
        torch.empty(rows, _HEADS, tokens, _HEAD_SIZE, dtype=_DTYPE[device.type], device=device)
    )
