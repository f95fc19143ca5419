"""What kernels of decode attention share: the tokens of a program, where they lie, and what their scores become."""

from __future__ import annotations

import math

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def first_and_last(
    start: tl.tensor,
    places: tl.tensor,
    share: tl.tensor,
    pads: tl.tensor,
    length: tl.tensor,
    row: tl.tensor,
    BLOCK_TOKENS: tl.constexpr,
    HAS_PADS: tl.constexpr,
    HAS_LENGTH: tl.constexpr,
) -> tl.tensor:
    """The first token of this program's share and the one after its last."""
    stop = start + places
    if HAS_LENGTH:
        stop = tl.load(length).to(tl.int32) + 1
        share = tl.cdiv(tl.cdiv(stop, tl.num_programs(2)), BLOCK_TOKENS) * BLOCK_TOKENS
    first = start + tl.program_id(2) * share
    last = tl.minimum(first + share, stop)
    if HAS_PADS:
        first = tl.maximum(first, tl.load(pads + row).to(tl.int32))
    return first, last


@triton.jit
def place_of(token: tl.tensor, start: tl.tensor, places: tl.tensor) -> tl.tensor:
    """Token t lies in place t mod `places`."""
    place = token - (start - start % places)
    return tl.where(place < places, place, place - places).to(tl.int64)


@triton.jit
def exponent(
    product: tl.tensor, scale: tl.tensor, softcap: tl.tensor, seen: tl.tensor, HAS_SOFTCAP: tl.constexpr
) -> tl.tensor:
    """The score as a power of 2; none where not `seen`."""
    score = product * scale
    if HAS_SOFTCAP:
        # softcap * tanh(score / softcap)
        score = softcap * (1.0 - 2.0 / (tl.exp(2.0 * score / softcap) + 1.0))
    return tl.where(seen, score * _LOG2_E, float("-inf"))
