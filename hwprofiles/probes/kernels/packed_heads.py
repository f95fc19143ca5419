"""Decode attention to heads of a 4-bit cache that are made of whole groups, as two kernels, and what loads them.

A thread loads 16 bytes at once, a quad of words: 32 values, half a group. The next tokens are loaded while these are
attended to. Codes are taken from all words a nibble at a time, so that they stay in the threads that loaded them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hwprofiles.probes.kernels.decode import exponent, first_and_last, place_of
from hwprofiles.probes.kernels.quantize import unpack_constants

_LOWEST = tl.constexpr(-3.4e38)
"""Below any score; finite, so that two of them differ by 0."""
_UNITS = tl.constexpr(0x4B000000)
"""2^23 as float32: the last bit counts 1."""


@triton.jit
def _load_tokens(
    words: tl.tensor,
    token: tl.tensor,
    last: tl.tensor,
    start: tl.tensor,
    places: tl.tensor,
    data_token: tl.tensor,
    data_kind: tl.tensor,
    head: tl.tensor,
    num_heads: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> tl.tensor:
    """Words [quads, *token, 4] and constants [quads, *token] of a row's K and V of tokens [a, b]; 0 from `last` on."""
    quad, word = tl.arange(0, BLOCK_DIM // 32)[:, None, None], tl.arange(0, 4)[None, None, None, :]
    mask = (token < last)[None, :, :] & (quad < HEAD_DIM // 32)
    at = (place_of(token, start, places) * (data_token // 4))[None, :, :]
    codes = words + (at + head * (HEAD_DIM // 8) + quad * 4)[:, :, :, None] + word
    constants = words + at + num_heads * (HEAD_DIM // 8) + head * (HEAD_DIM // 64) + quad // 2
    k = tl.load(codes, mask=mask[:, :, :, None], other=0)
    k_constants = tl.load(constants, mask=mask, other=0)
    v = tl.load(codes + data_kind // 4, mask=mask[:, :, :, None], other=0)
    return k, k_constants, v, tl.load(constants + data_kind // 4, mask=mask, other=0)


@triton.jit
def _code(word: tl.tensor, NIBBLE: tl.constexpr) -> tl.tensor:
    """A nibble's code times 16^(NIBBLE % 4), left where it lies in a float32 whose last bit counts 1."""
    half = (word.to(tl.uint32, bitcast=True) >> (NIBBLE // 4 * 16)) | _UNITS
    bits = half & (_UNITS | 15 << (NIBBLE % 4 * 4))
    return bits.to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def _value_of(quad: tl.tensor, word: tl.tensor, nibble: tl.tensor) -> tl.tensor:
    """Which value of a head it is."""
    return quad // 2 * 64 + quad % 2 * 16 + word * 4 + nibble // 2 + nibble % 2 * 32


@triton.jit
def _tile(word: tl.tensor, constants: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """[tokens, quads * 32]: the values of words [quads, tokens, 1, 4], column 32 * quad + 8 * word + nibble."""
    scale, low = unpack_constants(constants[:, :, :, None])
    v = [_code(word, i) * (scale * 0.0625 ** (i % 4)) + low for i in (0, 1, 2, 3, 4, 5, 6, 7)]
    even = tl.join(tl.join(v[0], v[4]), tl.join(v[2], v[6]))
    odd = tl.join(tl.join(v[1], v[5]), tl.join(v[3], v[7]))
    tile = tl.permute(tl.join(even, odd), (1, 2, 0, 3, 4, 5, 6))
    return tl.reshape(tile, [word.shape[1], word.shape[0] * 32]).to(dtype)


@triton.jit
def _split_query(query: tl.tensor, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr) -> tl.tensor:
    """What `_code` of each nibble is multiplied by, 8 of [quads, 1, 1, 4], and sums [quads, 1, 1] for the minimum."""
    quad, word = tl.arange(0, BLOCK_DIM // 32)[:, None], tl.arange(0, 4)[None, :]
    values = [_value_of(quad, word, i) for i in (0, 1, 2, 3, 4, 5, 6, 7)]
    queries = [tl.load(query + value, mask=value < HEAD_DIM, other=0.0).to(tl.float32) for value in values]
    sums = tl.sum(queries[0], 1)
    for i in tl.static_range(1, 8):
        sums += tl.sum(queries[i], 1)
    queries = [(queries[i] * 0.0625 ** (i % 4))[:, None, None, :] for i in (0, 1, 2, 3, 4, 5, 6, 7)]
    return queries, sums[:, None, None]


@triton.jit
def _products(k: tl.tensor, constants: tl.tensor, queries: tl.tensor, sums: tl.tensor) -> tl.tensor:
    """[tokens]: the query times their K."""
    product = _code(k, 0) * queries[0]
    for nibble in tl.static_range(1, 8):
        product += _code(k, nibble) * queries[nibble]
    scale, low = unpack_constants(constants)
    return tl.sum(tl.sum(product, 3) * scale + sums * low, 0)


@triton.jit(do_not_specialize=["start", "places", "share"])
def attend_alone(
    query: tl.tensor,
    _data: tl.tensor,
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
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    HAS_PADS: tl.constexpr,
    HAS_LENGTH: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    SINGLE: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """Where a K and V head has one query head: each of LANES tokens at once has a running softmax of its own.

    Sums over tokens then stay within a thread until the end.
    """
    NUM_QUADS: tl.constexpr = BLOCK_DIM // 32
    head, row, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    queries, sums = _split_query(query + row * query_row + head * query_head, HEAD_DIM, BLOCK_DIM)
    results = [tl.zeros([NUM_QUADS, LANES, 4], tl.float32) for _ in (0, 1, 2, 3, 4, 5, 6, 7)]
    lows = tl.zeros([NUM_QUADS, LANES], tl.float32)
    largest = tl.full([LANES], _LOWEST, tl.float32)
    total = tl.zeros([LANES], tl.float32)

    first, last = first_and_last(start, places, share, pads, length, row, BLOCK_TOKENS, HAS_PADS, HAS_LENGTH)
    words += row * (data_row // 4)
    lane, turn = tl.arange(0, LANES)[:, None], tl.arange(0, BLOCK_TOKENS // LANES)[None, :]
    token = first + turn * LANES + lane
    coming = _load_tokens(
        words, token, last, start, places, data_token, data_kind, head, num_heads, HEAD_DIM, BLOCK_DIM
    )
    for _begin in range(first, last, BLOCK_TOKENS):
        seen = token < last
        token += BLOCK_TOKENS
        k, k_constants, v, v_constants = coming
        coming = _load_tokens(
            words, token, last, start, places, data_token, data_kind, head, num_heads, HEAD_DIM, BLOCK_DIM
        )
        product = _products(k, k_constants, queries, sums)
        score = exponent(product, scale, softcap, seen, HAS_SOFTCAP)
        larger = tl.maximum(largest, tl.max(score, 1))
        weight = tl.exp2(score - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weight, 1)
        v_scale, v_low = unpack_constants(v_constants)
        lows = lows * shrink[None, :] + tl.sum(weight[None, :, :] * v_low, 2)
        weight = (weight[None, :, :] * v_scale)[:, :, :, None]
        results = [
            results[i] * shrink[None, :, None] + tl.sum(weight * _code(v, i), 2)
            for i in (0, 1, 2, 3, 4, 5, 6, 7)
        ]
        largest = larger

    top = tl.max(largest, 0)
    shrink = tl.exp2(largest - top)
    total = tl.sum(shrink * total, 0)
    low = tl.sum(lows * shrink[None, :], 1)[:, None]
    target, divisor = partial + row * partial_row + head * partial_head, total
    if not SINGLE:
        target += part * HEAD_DIM
        divisor = tl.where(total == 0.0, 1.0, total)  # a share of padding alone
        tl.store(weights + (row * num_heads + head) * tl.num_programs(2) + part, top + tl.log2(total))
    quad, word = tl.arange(0, NUM_QUADS)[:, None], tl.arange(0, 4)[None, :]
    for nibble in tl.static_range(8):
        value = _value_of(quad, word, nibble)
        result = tl.sum(results[nibble] * shrink[None, :, None], 1) * 0.0625 ** (nibble % 4) + low
        tl.store(target + value, (result / divisor).to(partial.dtype.element_ty), mask=value < HEAD_DIM)


@triton.jit(do_not_specialize=["start", "places", "share"])
def attend_grouped(
    query: tl.tensor,
    _data: tl.tensor,
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
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    HAS_PADS: tl.constexpr,
    HAS_LENGTH: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    SINGLE: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_BLOCKS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
) -> None:
    """Where query heads share a K and V head: by matrix products, tokens and values down, query heads across."""
    head, row, part = tl.program_id(0) // HEAD_BLOCKS, tl.program_id(1).to(tl.int64), tl.program_id(2)
    in_group = tl.program_id(0) % HEAD_BLOCKS * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    query_heads = head * GROUP + in_group
    column = tl.arange(0, BLOCK_DIM)
    value = _value_of(column // 32, column // 8 % 4, column % 8)[:, None]
    inside = (in_group < GROUP)[None, :] & (value < HEAD_DIM)
    q = tl.load(query + row * query_row + query_heads[None, :] * query_head + value, mask=inside, other=0.0)
    largest = tl.full([BLOCK_HEADS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_TOKENS, BLOCK_HEADS], tl.float32)
    result = tl.zeros([BLOCK_DIM, BLOCK_HEADS], tl.float32)

    first, last = first_and_last(start, places, share, pads, length, row, BLOCK_TOKENS, HAS_PADS, HAS_LENGTH)
    words += row * (data_row // 4)
    token = first + tl.arange(0, BLOCK_TOKENS)[:, None]
    coming = _load_tokens(
        words, token, last, start, places, data_token, data_kind, head, num_heads, HEAD_DIM, BLOCK_DIM
    )
    for _begin in range(first, last, BLOCK_TOKENS):
        seen = token < last
        token += BLOCK_TOKENS
        k, k_constants, v, v_constants = coming
        coming = _load_tokens(
            words, token, last, start, places, data_token, data_kind, head, num_heads, HEAD_DIM, BLOCK_DIM
        )
        product = tl.dot(_tile(k, k_constants, q.dtype), q, input_precision="ieee")
        score = exponent(product, scale, softcap, seen, HAS_SOFTCAP)
        larger = tl.maximum(largest, tl.max(score, 0))
        weight = tl.exp2(score - larger[None, :])
        shrink = tl.exp2(largest - larger)[None, :]
        total = total * shrink + weight
        values = tl.trans(_tile(v, v_constants, q.dtype))
        result = tl.dot(values, weight.to(q.dtype), result * shrink, input_precision="ieee")
        largest = larger

    total = tl.sum(total, 0)
    target, divisor = partial + row * partial_row + query_heads[None, :] * partial_head + value, total
    if not SINGLE:
        target += part * HEAD_DIM
        divisor = tl.where(total == 0.0, 1.0, total)  # a share of padding alone
        share_at = (row * num_heads * GROUP + query_heads) * tl.num_programs(2) + part
        tl.store(weights + share_at, largest + tl.log2(total), mask=in_group < GROUP)
    tl.store(target, (result / divisor[None, :]).to(partial.dtype.element_ty), mask=inside)
