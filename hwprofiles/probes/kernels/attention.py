"""Decode attention as a kernel: one query token a row over cached tokens in the cache's own layout, packed or not.

A program takes the query heads of one K and V head of one row over a share of the tokens, so that small batches fill
the device too; a second kernel merges the shares. Source: flash-decoding (Dao et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

from hwprofiles.packing import GROUP_SIZE
from hwprofiles.probes.cpu_attention import Decode
from hwprofiles.probes.kernels.decode import exponent, first_and_last, place_of
from hwprofiles.probes.kernels.packed_heads import attend_alone, attend_grouped
from hwprofiles.probes.kernels.quantize import unpack_constants

_WARPS_PER_PROCESSOR = 16
"""As many as registers leave room for."""
_TURNS = 2
"""Tokens of each thread in a tile, where a K and V head has one query head."""
_MAX_SHARES = 64
_MAX_QUERY_HEADS = 64
_TILE_BYTES = 16384
_MAX_TILE_TOKENS = 128
_MIN_TILE = 16
"""The least size of a matrix product's side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How the kernel is compiled."""

    block_tokens: int
    num_warps: int
    num_stages: int


def default_tuning(*, packed: bool, group: int, head_dim: int, element_bytes: int) -> Tuning:
    """Tiles of 16 KB of K as the products take it, loaded ahead as far as registers and shared memory allow.

    Where there are no products, a tile is what a thread's registers hold twice.
    """
    if packed and _is_whole(head_dim) and group == 1:
        return Tuning(block_tokens=_TURNS * _lanes(2, head_dim), num_warps=2, num_stages=1)
    block_tokens = _TILE_BYTES // (_block_dim(head_dim) * element_bytes)
    gathered = packed and not _is_whole(head_dim)
    return Tuning(
        block_tokens=min(_MAX_TILE_TOKENS, max(_MIN_TILE, block_tokens // (2 if gathered else 1))),
        num_warps=4,
        num_stages=1 if packed else 3,
    )


def attend(
    query: torch.Tensor,
    tokens: torch.Tensor,
    out: torch.Tensor,
    how: Decode,
    *,
    length: torch.Tensor | None = None,
    num_shares: int | None = None,
    tuning: Tuning | None = None,
) -> None:
    """Write the attention of query [rows, heads, 1, head_dim] to the tokens of a cache to `out`.

    `tokens` is [places, 2, rows, vector]: heads of values, or packed uint8. With `length`, [1] int64 on the device,
    only the first `length` + 1 of them count, as it is when the kernel runs; `start` must be 0 then.
    """
    num_rows, query_heads, _, head_dim = query.shape
    num_heads, start, pads = how.num_heads, how.start, how.pads
    packed = tokens.dtype == torch.uint8
    assert query.stride(3) == tokens.stride(3) == out.stride(3) == 1
    group = query_heads // num_heads
    block_heads = min(_MAX_QUERY_HEADS, max(_MIN_TILE, triton.next_power_of_2(group)))
    head_blocks = triton.cdiv(group, block_heads)
    tuning = tuning or default_tuning(
        packed=packed, group=group, head_dim=head_dim, element_bytes=query.element_size()
    )
    places = tokens.shape[0]
    programs = num_rows * num_heads * head_blocks
    if num_shares is None:
        num_shares = shares_for(programs, places, tuning, query.device)
    share = triton.cdiv(triton.cdiv(places, num_shares), tuning.block_tokens) * tuning.block_tokens
    num_shares = triton.cdiv(places, share)
    single = num_shares == 1
    partial = (
        out if single else query.new_empty((num_rows, query_heads, num_shares, head_dim), dtype=torch.float32)
    )
    weights = out if single else query.new_empty((num_rows, query_heads, num_shares), dtype=torch.float32)
    heads = {"GROUP": group, "HEAD_BLOCKS": head_blocks, "BLOCK_HEADS": block_heads}
    if not packed or not _is_whole(head_dim):
        kernel, options = _attend, heads | {"GATHERED": packed}
    elif group > 1:
        kernel, options = attend_grouped, heads
    else:
        kernel, options = attend_alone, {"LANES": _lanes(tuning.num_warps, head_dim)}
    kernel[(num_heads * head_blocks, num_rows, num_shares)](
        query,
        tokens,
        tokens.view(torch.int32) if packed else tokens,
        partial,
        weights,
        query if pads is None else pads,
        query if length is None else length,
        start,
        places,
        share,
        how.scale,
        how.softcap or 0.0,
        query.stride(0),
        query.stride(1),
        *tokens.stride()[:3],
        partial.stride(0),
        partial.stride(1),
        num_heads,
        HEAD_DIM=head_dim,
        BLOCK_TOKENS=tuning.block_tokens,
        BLOCK_DIM=_block_dim(head_dim),
        HAS_PADS=pads is not None,
        HAS_LENGTH=length is not None,
        HAS_SOFTCAP=how.softcap is not None,
        SINGLE=single,
        **options,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
    )
    if not single:
        _merge[(query_heads, num_rows)](
            partial,
            weights,
            out,
            num_shares,
            out.stride(0),
            out.stride(1),
            HEAD_DIM=head_dim,
            BLOCK_SHARES=triton.next_power_of_2(num_shares),
            BLOCK_DIM=_block_dim(head_dim),
            num_warps=4,
        )


def shares_for(programs: int, num_tokens: int, tuning: Tuning, device: torch.device) -> int:
    """Into how many shares the tokens are cut: about as many programs as run at once, each with two tiles or more."""
    at_once = _num_processors(device) * _WARPS_PER_PROCESSOR // tuning.num_warps
    return max(1, min(round(at_once / programs), _MAX_SHARES, num_tokens // (2 * tuning.block_tokens)))


@cache
def _num_processors(device: torch.device) -> int:
    """Multiprocessors; 1 in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _block_dim(head_dim: int) -> int:
    """Values of a head in a tile."""
    return max(_MIN_TILE, int(triton.next_power_of_2(head_dim)))


def _is_whole(head_dim: int) -> bool:
    """Whether packed heads are made of whole groups."""
    return head_dim % GROUP_SIZE == 0


def _lanes(num_warps: int, head_dim: int) -> int:
    """Tokens at once where each thread loads 32 values of one."""
    return num_warps * 32 * 32 // _block_dim(head_dim)


@triton.jit(do_not_specialize=["start", "places", "share"])
def _attend(
    query: tl.tensor,
    data: tl.tensor,
    words: tl.tensor,
    partial: tl.tensor,
    weights: tl.tensor,
    pads: tl.tensor,
    length: tl.tensor,
    start: tl.tensor,
    places: tl.tensor,
    share: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    data_token: tl.tensor,
    data_kind: tl.tensor,
    data_row: tl.tensor,
    partial_row: tl.tensor,
    partial_head: tl.tensor,
    num_heads: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCKS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    GATHERED: tl.constexpr,
    HAS_PADS: tl.constexpr,
    HAS_LENGTH: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    SINGLE: tl.constexpr,
) -> None:
    head = tl.program_id(0) // HEAD_BLOCKS
    row = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    in_group = tl.program_id(0) % HEAD_BLOCKS * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    query_heads = head * GROUP + in_group
    dim = tl.arange(0, BLOCK_DIM)
    inside = (in_group < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    q = tl.load(
        query + row * query_row + query_heads[:, None] * query_head + dim[None, :], mask=inside, other=0.0
    )

    first, last = first_and_last(start, places, share, pads, length, row, BLOCK_TOKENS, HAS_PADS, HAS_LENGTH)
    largest = tl.full([BLOCK_HEADS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_HEADS], tl.float32)
    result = tl.zeros([BLOCK_HEADS, BLOCK_DIM], tl.float32)
    for begin in range(first, last, BLOCK_TOKENS):
        token = begin + tl.arange(0, BLOCK_TOKENS)
        seen = token < last
        at = row * data_row + place_of(token, start, places) * data_token
        k = _load_tile(data, words, at, seen, head, num_heads, q.dtype, HEAD_DIM, BLOCK_DIM, GATHERED)
        product = tl.dot(q, tl.trans(k), input_precision="ieee")
        score = exponent(product, scale, softcap, seen[None, :], HAS_SOFTCAP)
        larger = tl.maximum(largest, tl.max(score, 1))
        weight = tl.exp2(score - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weight, 1)
        at += data_kind
        v = _load_tile(data, words, at, seen, head, num_heads, q.dtype, HEAD_DIM, BLOCK_DIM, GATHERED)
        result = tl.dot(weight.to(v.dtype), v, result * shrink[:, None], input_precision="ieee")
        largest = larger

    target = partial + row * partial_row + query_heads[:, None] * partial_head + dim[None, :]
    if SINGLE:
        tl.store(target, (result / total[:, None]).to(partial.dtype.element_ty), mask=inside)
    else:
        divisor = tl.where(total == 0.0, 1.0, total)  # a share of padding alone
        tl.store(target + part * HEAD_DIM, result / divisor[:, None], mask=inside)
        share_at = (row * num_heads * GROUP + query_heads) * tl.num_programs(2) + part
        tl.store(weights + share_at, largest + tl.log2(total), mask=in_group < GROUP)


@triton.jit
def _load_tile(
    data: tl.tensor,
    words: tl.tensor,
    at: tl.tensor,
    seen: tl.tensor,
    head: tl.tensor,
    num_heads: tl.tensor,
    dtype: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    GATHERED: tl.constexpr,
) -> tl.tensor:
    """[tokens, head_dim] of one head of the vectors that start `at`; zeros where not `seen` or past the head."""
    if GATHERED:
        constants = at // 4 + (num_heads * HEAD_DIM + 63) // 64 * 8
        tile = _gather_values(data, words, at, constants, seen, head, dtype, HEAD_DIM, BLOCK_DIM)
    else:
        dim = tl.arange(0, BLOCK_DIM)
        mask = seen[:, None] & (dim < HEAD_DIM)[None, :]
        tile = tl.load(data + (at + head * HEAD_DIM)[:, None] + dim[None, :], mask=mask, other=0.0)
    return tile


@triton.jit
def _gather_values(
    data: tl.tensor,
    words: tl.tensor,
    at: tl.tensor,
    constants: tl.tensor,
    seen: tl.tensor,
    head: tl.tensor,
    dtype: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> tl.tensor:
    """As `_load_tile`, of a packed head whose groups it shares with others."""
    dim = tl.arange(0, BLOCK_DIM)
    mask = seen[:, None] & (dim < HEAD_DIM)[None, :]
    position = head * HEAD_DIM + dim
    group, shift = position // 64, position % 64 // 32 * 4
    code = tl.load(data + at[:, None] + (group * 32 + position % 32)[None, :], mask=mask, other=0)
    code = (code.to(tl.int32) >> shift[None, :]) & 15
    scale, low = unpack_constants(tl.load(words + constants[:, None] + group[None, :], mask=mask, other=0))
    return (code.to(tl.float32) * scale + low).to(dtype)


@triton.jit
def _merge(
    partial: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    num_shares: tl.tensor,
    out_row: tl.tensor,
    out_head: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_SHARES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> None:
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    share, dim = tl.arange(0, BLOCK_SHARES), tl.arange(0, BLOCK_DIM)
    first = (row * tl.num_programs(0) + head) * num_shares
    weight = tl.load(weights + first + share, mask=share < num_shares, other=float("-inf"))
    weight = tl.exp2(weight - tl.max(weight, 0))
    mask = (share < num_shares)[:, None] & (dim < HEAD_DIM)[None, :]
    values = tl.load(partial + (first + share)[:, None] * HEAD_DIM + dim[None, :], mask=mask, other=0.0)
    result = tl.sum(values * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(
        out + row * out_row + head * out_head + dim, result.to(out.dtype.element_ty), mask=dim < HEAD_DIM
    )
