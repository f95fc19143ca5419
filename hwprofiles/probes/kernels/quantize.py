"""4-bit quantisation and dequantisation as kernels, byte for byte what hwprofiles.probes.quantize defines.

A program takes some groups of 64 values of any vectors: their values as two tiles of 32, because a byte holds
values b and b + 32 of its group, and the group's two float16 constants as one word.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from hwprofiles.packing import GROUP_SIZE

DEQUANTISE_GROUPS = 64
"""Groups a program dequantises."""
QUANTISE_GROUPS = 64
NUM_WARPS = 4
_ALIGNED = 16
_NEVER = 2**62
"""A program that there is none of."""
_NAN_CONSTANTS = tl.constexpr(0x7E00)
"""Scale NaN, minimum 0."""
_FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)
_FLOAT16_MAX = tl.constexpr(65504.0)
_ROUNDER = tl.constexpr(8388608.0)
"""2^23: added to a float32 of 0 to 15 it leaves the nearest integer, even ones at ties, in the last bits."""


def dequantise(
    packed: torch.Tensor, n: int, out: torch.Tensor, *, groups_per_program: int = DEQUANTISE_GROUPS
) -> None:
    """The values [a, b, c, n] of packed [a, b, c, quantised_bytes(n)]; last dimensions contiguous."""
    num_groups = -(-n // GROUP_SIZE)
    size_a, size_b, size_c = out.shape[:3]
    total = size_a * size_b * size_c * num_groups
    assert total < 2**31, total
    if not total:
        return
    _dequantise[(triton.cdiv(total, groups_per_program),)](
        packed,
        packed.view(torch.int32),
        out,
        n,
        num_groups,
        total,
        size_b,
        size_c,
        *packed.stride()[:3],
        *out.stride()[:3],
        RAGGED=n % GROUP_SIZE != 0,
        BLOCK=groups_per_program,
        num_warps=NUM_WARPS,
    )


class DequantiseAll:
    """The same vectors again and again, wherever they lie, in one launch: packed [quantised_bytes(n)] to out [n]."""

    def __init__(self, vectors: Sequence[tuple[torch.Tensor, int, torch.Tensor]]) -> None:
        """(packed, n, out) of each, all `out` of one dtype; packed starts on multiples of 16 bytes, as `out` does."""
        packed, _, out = vectors[0]
        self._codes, self._words, self._out = packed, packed.view(torch.int32), out
        self._segments = max(2, triton.next_power_of_2(len(vectors)))
        rows: list[tuple[int, int, int, int]] = []
        self._num_programs = 0
        for source, n, target in vectors:
            from_bytes = source.data_ptr() - packed.data_ptr()
            to_bytes = target.data_ptr() - out.data_ptr()
            assert from_bytes % _ALIGNED == to_bytes % _ALIGNED == 0, (from_bytes, to_bytes)
            rows.append((self._num_programs, from_bytes, to_bytes // out.element_size(), n))
            self._num_programs += triton.cdiv(-(-n // GROUP_SIZE), DEQUANTISE_GROUPS)
        rows += [(_NEVER, 0, 0, 0)] * (self._segments - len(rows))
        self._table = torch.tensor(rows, dtype=torch.int64).T.contiguous().to(packed.device)
        self._is_ragged = any(n % GROUP_SIZE for _, n, _ in vectors)

    def __call__(self) -> None:
        """Do it."""
        _dequantise_all[(self._num_programs,)](
            self._codes,
            self._words,
            self._out,
            self._table,
            SEGMENTS=self._segments,
            RAGGED=self._is_ragged,
            BLOCK=DEQUANTISE_GROUPS,
            num_warps=NUM_WARPS,
        )


def quantise(values: torch.Tensor, packed: torch.Tensor) -> None:
    """Quantise values [a, b, c, n] into packed [a, b, c, quantised_bytes(n)]; last dimensions contiguous."""
    strides = values.stride()[:3]
    _launch(
        (values, values), ((*strides, 0), (*strides, 0)), packed.unsqueeze(0), values.shape[-1], head_dim=0
    )


def quantise_pair(key: torch.Tensor, value: torch.Tensor, packed: torch.Tensor) -> None:
    """Quantise K and V [rows, heads, tokens, head_dim] into packed [tokens, 2, rows, bytes] in one launch."""
    by_token = key.permute(2, 0, 1, 3), value.permute(2, 0, 1, 3)
    strides = ((0, *by_token[0].stride()[:3]), (0, *by_token[1].stride()[:3]))
    n = key.shape[1] * key.shape[3]
    _launch(by_token, strides, packed.permute(1, 0, 2, 3).unsqueeze(1), n, head_dim=key.shape[3])


def _launch(
    values: tuple[torch.Tensor, torch.Tensor],
    strides: tuple[tuple[int, ...], tuple[int, ...]],
    packed: torch.Tensor,
    n: int,
    *,
    head_dim: int,
) -> None:
    """Quantise one or two values [a, b, c, ...] of strides (a, b, c, head) into packed [1 or 2, a, b, c, bytes]."""
    num_kinds, size_a, size_b, size_c, _ = packed.shape
    num_groups = -(-n // GROUP_SIZE)
    total = size_a * size_b * size_c * num_groups
    assert total < 2**31, total
    if not total:
        return
    _quantise[(triton.cdiv(total, QUANTISE_GROUPS), num_kinds)](
        *values,
        packed,
        packed.view(torch.int32),
        n,
        num_groups,
        total,
        size_b,
        size_c,
        *strides[0],
        *strides[1],
        *packed.stride()[:4],
        HEAD_DIM=head_dim,
        RAGGED=n % GROUP_SIZE != 0,
        BLOCK=QUANTISE_GROUPS,
        num_warps=NUM_WARPS,
    )


@triton.jit
def _dequantise(
    codes: tl.tensor,
    words: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    num_groups: tl.tensor,
    total: tl.tensor,
    size_b: tl.tensor,
    size_c: tl.tensor,
    packed_a: tl.tensor,
    packed_b: tl.tensor,
    packed_c: tl.tensor,
    out_a: tl.tensor,
    out_b: tl.tensor,
    out_c: tl.tensor,
    RAGGED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    vector = index // num_groups
    group = (index % num_groups).to(tl.int64)
    a = (vector // (size_b * size_c)).to(tl.int64)
    b = (vector // size_c % size_b).to(tl.int64)
    c = (vector % size_c).to(tl.int64)
    start = a * packed_a + b * packed_b + c * packed_c
    target = out + (a * out_a + b * out_b + c * out_c)
    _unpack_groups(codes, words, start, target, group, num_groups, inside, n, RAGGED)


@triton.jit
def _dequantise_all(
    codes: tl.tensor,
    words: tl.tensor,
    out: tl.tensor,
    table: tl.tensor,
    SEGMENTS: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    begun = tl.load(table + tl.arange(0, SEGMENTS)) <= program
    mine = table + tl.sum(begun.to(tl.int32), 0) - 1
    first, n = tl.load(mine), tl.load(mine + 3 * SEGMENTS)
    source = tl.multiple_of(tl.load(mine + SEGMENTS), 16)
    target = tl.multiple_of(tl.load(mine + 2 * SEGMENTS), 4)  # 16 bytes are 4 values at least
    num_groups = (n + 63) // 64
    group = (program - first) * BLOCK + tl.arange(0, BLOCK)
    inside = group < num_groups
    nothing = tl.zeros([BLOCK], tl.int64)
    _unpack_groups(
        codes, words, source + nothing, out + (target + nothing), group, num_groups, inside, n, RAGGED
    )


@triton.jit
def _unpack_groups(
    codes: tl.tensor,
    words: tl.tensor,
    start: tl.tensor,
    out: tl.tensor,
    group: tl.tensor,
    num_groups: tl.tensor,
    inside: tl.tensor,
    n: tl.tensor,
    RAGGED: tl.constexpr,
) -> None:
    """Groups [BLOCK] of vectors whose bytes `start` [BLOCK] there and whose values go to `out` [BLOCK]."""
    column = tl.max_contiguous(tl.arange(0, 32), 8)  # 8 codes a thread are 16 bytes of a 16-bit result
    code = tl.load(codes + (start + group * 32)[:, None] + column[None, :], mask=inside[:, None], other=0)
    code = code.to(tl.uint32)
    word = tl.load(words + start // 4 + num_groups * 8 + group, mask=inside, other=0)
    scale, low = unpack_constants(word)
    first = (code & 15).to(tl.float32) * scale[:, None] + low[:, None]
    second = (code >> 4).to(tl.float32) * scale[:, None] + low[:, None]

    position = (group * 64)[:, None] + column[None, :]
    target = out[:, None] + position
    first_inside = inside[:, None]
    second_inside = first_inside
    if RAGGED:
        first_inside = first_inside & (position < n)
        second_inside = second_inside & (position + 32 < n)
    tl.store(target, first.to(out.dtype.element_ty), mask=first_inside)
    tl.store(target + 32, second.to(out.dtype.element_ty), mask=second_inside)


@triton.jit
def unpack_constants(word: tl.tensor) -> tl.tensor:
    """Scale and minimum, float32, of the words that hold both as float16."""
    scale = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    low = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return scale.to(tl.float32), low.to(tl.float32)


@triton.jit
def _quantise(
    key: tl.tensor,
    value: tl.tensor,
    codes: tl.tensor,
    words: tl.tensor,
    n: tl.tensor,
    num_groups: tl.tensor,
    total: tl.tensor,
    size_b: tl.tensor,
    size_c: tl.tensor,
    key_a: tl.tensor,
    key_b: tl.tensor,
    key_c: tl.tensor,
    key_head: tl.tensor,
    value_a: tl.tensor,
    value_b: tl.tensor,
    value_c: tl.tensor,
    value_head: tl.tensor,
    packed_kind: tl.tensor,
    packed_a: tl.tensor,
    packed_b: tl.tensor,
    packed_c: tl.tensor,
    HEAD_DIM: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    kind = tl.program_id(1)
    source = key
    if kind == 1:
        source = value
    stride_a = tl.where(kind == 1, value_a, key_a).to(tl.int64)
    stride_b = tl.where(kind == 1, value_b, key_b).to(tl.int64)
    stride_c = tl.where(kind == 1, value_c, key_c).to(tl.int64)
    stride_head = tl.where(kind == 1, value_head, key_head).to(tl.int64)

    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    vector = index // num_groups
    group = (index % num_groups).to(tl.int64)
    a = (vector // (size_b * size_c)).to(tl.int64)
    b = (vector // size_c % size_b).to(tl.int64)
    c = (vector % size_c).to(tl.int64)
    source += a * stride_a + b * stride_b + c * stride_c

    column = tl.arange(0, 32)
    position = (group * 64)[:, None] + column[None, :]
    first = _load(source, position, n, stride_head, inside, HEAD_DIM, RAGGED)
    second = _load(source, position + 32, n, stride_head, inside, HEAD_DIM, RAGGED)
    low = tl.minimum(tl.min(first, 1), tl.min(second, 1))
    high = tl.maximum(tl.max(first, 1), tl.max(second, 1))
    finite = tl.minimum(tl.min(_is_finite(first), 1), tl.min(_is_finite(second), 1)) == 1

    low, high = low + 0.0, high + 0.0  # no negative zero
    scale = (high * 0.5 - low * 0.5) * (2.0 / 15.0)
    scale = tl.minimum(scale, _FLOAT16_MAX).to(tl.float16)
    low = tl.minimum(tl.maximum(low, -_FLOAT16_MAX), _FLOAT16_MAX).to(tl.float16)
    word = _bits(scale) | (_bits(low) << 16)
    word = tl.where(finite, word, _NAN_CONSTANTS)
    scale, low = scale.to(tl.float32), low.to(tl.float32)
    varies = finite & (scale != 0)
    steps = tl.where(varies, tl.div_rn(1.0, tl.where(varies, scale, 1.0)), 0.0)
    code = _code(first, low, steps) | (_code(second, low, steps) << 4)

    start = kind.to(tl.int64) * packed_kind + a * packed_a + b * packed_b + c * packed_c
    tl.store(codes + (start + group * 32)[:, None] + column[None, :], code.to(tl.uint8), mask=inside[:, None])
    tl.store(words + start // 4 + num_groups * 8 + group, word, mask=inside)


@triton.jit
def _load(
    source: tl.tensor,
    position: tl.tensor,
    n: tl.tensor,
    stride_head: tl.tensor,
    inside: tl.tensor,
    HEAD_DIM: tl.constexpr,
    RAGGED: tl.constexpr,
) -> tl.tensor:
    """float32 values at [groups, 32] positions of each group's vector; past its end, the last one."""
    if RAGGED:
        position = tl.minimum(position, n - 1)
    if HEAD_DIM:
        position = position // HEAD_DIM * stride_head + position % HEAD_DIM
    return tl.load(source[:, None] + position, mask=inside[:, None], other=0.0).to(tl.float32)


@triton.jit
def _is_finite(values: tl.tensor) -> tl.tensor:
    return (tl.abs(values) <= _FLOAT32_MAX).to(tl.int32)


@triton.jit
def _bits(half: tl.tensor) -> tl.tensor:
    """The bits of a float16 in the low half of an int32."""
    return half.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit
def _code(values: tl.tensor, low: tl.tensor, steps: tl.tensor) -> tl.tensor:
    """0 to 15, the nearest step, even ones at ties; 0 where NaN, as in every group that is not finite."""
    scaled = (values - low[:, None]) * steps[:, None]
    scaled = tl.minimum(tl.maximum(scaled, 0.0), 15.0)
    return (scaled + _ROUNDER).to(tl.int32, bitcast=True) & 15
