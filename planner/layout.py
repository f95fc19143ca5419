"""Byte layouts: how large each slab, cache group and slot is. The ledger adds them up, the executor allocates them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from hwprofiles.packing import quantised_bytes
from planner.model import LayerSpec, ModelSpec, TensorSpec
from planner.placement import TIER_LETTER, CacheGroup, CacheRows, TierRows, group_tier
from planner.policy import Bits, Tier

PAGE_BYTES = 4096
"""Slabs start and end on pages: what O_DIRECT asks for."""
TENSOR_ALIGN_BYTES = 256
ATTENTION_CHUNK_BYTES = 256 * 2**20
"""Dequantised K and V of one attention call, unless a single row is larger."""
_LARGE_FLOPS = 1e11
"""Of one expert's first product on a GPU, from which it is worth a call of its own, and waiting for the router."""
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def is_large_expert(layer: LayerSpec, num_tokens: float) -> bool:
    """Whether each expert's products are worth calls of their own on a GPU, and waiting for the router."""
    return num_tokens >= large_expert_tokens(layer)


def large_expert_tokens(layer: LayerSpec) -> float:
    """From how many tokens on; infinite for a layer without experts."""
    if not layer.num_experts:
        return math.inf
    first = 2 / 3 if layer.gated else 1 / 2  # up, and the gate where there is one
    rows = _large_rows(first * layer.expert_numel / layer.num_experts)
    return rows * layer.num_experts / layer.experts_per_token


def is_large_product(rows: float, numel: float) -> bool:
    """The same of the matrix that an expert's tokens come to first."""
    return rows >= _large_rows(numel)


def _large_rows(numel: float) -> float:
    """From how many rows on, for a matrix of so many elements."""
    return _LARGE_FLOPS / (2.0 * numel)


def align(num_bytes: int, to: int = PAGE_BYTES) -> int:
    """The next multiple of `to`."""
    return -(-num_bytes // to) * to


def tensor_bytes(tensor: TensorSpec, bits: Bits, element_bytes: int) -> int:
    """Bytes of one weight tensor in its home."""
    return quantised_bytes(tensor.numel) if bits == 4 and tensor.quantizable else tensor.numel * element_bytes


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor's bytes within its slab."""

    index: int
    """Position in the layer's tensors."""
    offset: int
    nbytes: int
    quantised: bool


@dataclass(frozen=True, slots=True)
class Slab:
    """The contiguous bytes of one layer on one tier."""

    nbytes: int
    places: tuple[TensorPlace, ...]


EMPTY_SLAB = Slab(0, ())


@lru_cache(maxsize=4096)
def layer_slabs(layer: LayerSpec, letters: str, bits: Bits, element_bytes: int) -> dict[Tier, Slab]:
    """The slab of each tier for a layer whose tensors live where `letters` says."""
    offsets: dict[Tier, int] = {"gpu": 0, "cpu": 0, "disk": 0}
    places: dict[Tier, list[TensorPlace]] = {"gpu": [], "cpu": [], "disk": []}
    for index, (tensor, letter) in enumerate(zip(layer.tensors, letters, strict=True)):
        tier = TIER_LETTER[letter]
        nbytes = tensor_bytes(tensor, bits, element_bytes)
        places[tier].append(TensorPlace(index, offsets[tier], nbytes, bits == 4 and tensor.quantizable))
        offsets[tier] += align(nbytes, TENSOR_ALIGN_BYTES)
    return {tier: Slab(align(offsets[tier]), tuple(places[tier])) for tier in offsets}


def kv_vector_bytes(model: ModelSpec, bits: Bits, element_bytes: int) -> int:
    """Bytes of one token's K (or V) of one sequence in one layer."""
    return quantised_bytes(model.kv_dim) if bits == 4 else model.kv_dim * element_bytes


def token_stride(group: CacheGroup, rows: int, vector_bytes: int) -> int:
    """Bytes from one token to the next in a cache group laid out [token, K or V, row, vector].

    On disk a token starts on a page, so that one token can be written past the page cache.
    """
    nbytes = 2 * rows * vector_bytes
    return align(nbytes) if group_tier(group) == "disk" else nbytes


def group_bytes(group: CacheGroup, rows: int, vector_bytes: int, num_tokens: int) -> int:
    """Bytes of one cache group of one layer and one gpu batch."""
    return align(num_tokens * token_stride(group, rows, vector_bytes))


def is_resident(group: CacheGroup, compute_tier: Tier) -> bool:
    """Whether the group's rows are attended where they live, on the compute device."""
    return group_tier(group) == compute_tier


def is_streamed(group: CacheGroup, compute_tier: Tier) -> bool:
    """Whether decode loads the group into a cache slot of the compute tier."""
    return not is_resident(group, compute_tier) and not group.endswith("_attend")


def takes_slot(rows: CacheRows, compute_tier: Tier) -> bool:
    """Whether some of a gpu batch's K and V are off the compute tier, and are stored from a cache slot."""
    return not all(is_resident(group, compute_tier) for group in rows.held)


def is_loaded(rows: CacheRows, compute_tier: Tier) -> bool:
    """Whether decode loads some of a gpu batch's K and V into a cache slot."""
    return any(is_streamed(group, compute_tier) for group in rows.held)


def cache_slot_offsets(
    rows: CacheRows, vector_bytes: int, num_tokens: int, compute_tier: Tier, *, prefill: bool
) -> dict[CacheGroup, tuple[int, int]]:
    """(offset, bytes) of each group in a cache slot: in prefill all that is stored later, in decode what is loaded."""
    offsets: dict[CacheGroup, tuple[int, int]] = {}
    used = 0
    for group, count in rows.counts():
        wanted = not is_resident(group, compute_tier) if prefill else is_streamed(group, compute_tier)
        if count and wanted:
            nbytes = group_bytes(group, count, vector_bytes, num_tokens)
            offsets[group] = (used, nbytes)
            used += nbytes
    return offsets


def activation_bytes(rows: int, num_tokens: int, hidden_size: int, element_bytes: int) -> int:
    """Hidden states [rows, tokens, hidden]."""
    return align(rows * num_tokens * hidden_size * element_bytes)


def activations_resident(rows: TierRows, compute_tier: Tier) -> bool:
    """Whether a gpu batch's hidden states never leave the compute tier, its prompts' included."""
    return dict(rows.counts())[compute_tier] == rows.total
