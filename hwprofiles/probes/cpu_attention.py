"""Decode attention on the CPU, one query token a row: the function that a run calls and that the profile measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention, softmax

from hwprofiles.native_attention import MAX_HEAD_DIM, Attend, Job, Stored, find_attention
from hwprofiles.packing import GROUP_SIZE

_STORED = {
    torch.float32: Stored.FLOAT32,
    torch.float16: Stored.FLOAT16,
    torch.bfloat16: Stored.BFLOAT16,
    torch.uint8: Stored.PACKED,
}
_BLOCK_BYTES_PER_THREAD = 2**20
"""Of K and V turned to float32 at once: what stays in a core's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """What decode attention is given beside queries and cached tokens."""

    num_heads: int
    """Of K and V."""
    start: int
    """The oldest token there is; of a cache with P places token t lies in place t mod P, and P tokens are there."""
    pads: torch.Tensor | None
    """[rows] of int64: the first token of each row, counted as `start` is; None where nothing is padded."""
    scale: float
    softcap: float | None


@dataclass(frozen=True, slots=True)
class NativeCall:
    """A call of the compiled attention with all that it is given; to make it takes one step out of Python."""

    attend: Attend
    job: Job
    tensors: tuple[torch.Tensor | None, ...]
    """Whose memory the job points to."""

    def __call__(self) -> None:
        """Attend; the result is where it was asked for."""
        self.attend(self.job)


def native_call(
    query: torch.Tensor, tokens: torch.Tensor, how: Decode, out: torch.Tensor, threads: int
) -> NativeCall | None:
    """Attention of query [rows, heads, 1, head_dim] to all tokens of a cache, into `out`; None without a compiler.

    `query` and `out` are contiguous float32; `tokens` is [places, 2, rows, vector]: heads of values, or packed uint8.
    """
    num_rows, query_heads, _, head_dim = query.shape
    attend = find_attention()
    if attend is None or head_dim > MAX_HEAD_DIM:
        return None
    assert tokens.stride(3) == 1, tokens.stride()
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in (query, out))
    pads = None if how.pads is None else how.pads.contiguous()
    token_bytes, value_bytes, row_bytes = (tokens.element_size() * stride for stride in tokens.stride()[:3])
    job = Job(
        data=tokens.data_ptr(),
        token_bytes=token_bytes,
        value_bytes=value_bytes,
        row_bytes=row_bytes,
        query=query.data_ptr(),
        out=out.data_ptr(),
        pads=None if pads is None else pads.data_ptr(),
        rows=num_rows,
        start=how.start,
        stop=how.start + tokens.shape[0],
        heads=how.num_heads,
        group=query_heads // how.num_heads,
        head_dim=head_dim,
        groups=-(-how.num_heads * head_dim // GROUP_SIZE),
        scale=how.scale,
        softcap=how.softcap or 0.0,
        kind=_STORED[tokens.dtype],
        threads=threads,
    )
    return NativeCall(attend, job, (query, tokens, pads, out))


def attend_native(query: torch.Tensor, tokens: torch.Tensor, how: Decode) -> torch.Tensor | None:
    """The same with a query of any dtype, and a result like it; it takes as many threads as torch does."""
    values = query.to(torch.float32).contiguous()
    out = torch.empty_like(values)
    call = native_call(values, tokens, how, out, torch.get_num_threads())
    if call is None:
        return None
    call()
    return out.to(query.dtype)


def attend_plain(query: torch.Tensor, tokens: torch.Tensor, how: Decode) -> torch.Tensor:
    """The same in torch alone, on any device, for unpacked tokens.

    On the CPU 16-bit values are turned to float32 in blocks of rows and heads: torch is slow with them as they lie.
    The query heads that share a K and V head are treated as queries of one head, so nothing is repeated.
    """
    num_rows, _, _, head_dim = query.shape
    cached = tokens.unflatten(-1, (how.num_heads, head_dim)).permute(1, 2, 3, 0, 4)
    grouped = query.reshape(num_rows, how.num_heads, -1, head_dim)
    out = torch.empty_like(grouped)
    mask = None
    if how.pads is not None:
        place = torch.arange(tokens.shape[0], device=query.device)
        token = how.start + (place - how.start) % tokens.shape[0]
        mask = (token >= how.pads[:, None])[:, None, None, :]
    converts = query.device.type == "cpu" and tokens.dtype != torch.float32
    dtype = torch.float32 if converts else tokens.dtype
    for rows, heads in _blocks(cached, limited=converts):
        key, value = cached[:, rows, heads].to(dtype)
        seen = None if mask is None else mask[rows]
        out[rows, heads] = _attend(grouped[rows, heads].to(dtype), key, value, seen, how)
    return out.view(query.shape)


def _blocks(cached: torch.Tensor, *, limited: bool) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and of heads of [2, rows, heads, tokens, head_dim]: all at once, or what a cache holds."""
    _, num_rows, num_heads, num_tokens, head_dim = cached.shape
    count = num_rows * num_heads
    if limited:
        room = _BLOCK_BYTES_PER_THREAD * torch.get_num_threads()
        count = max(1, room // (2 * torch.float32.itemsize * num_tokens * head_dim))
    heads, rows = min(count, num_heads), max(1, count // num_heads)
    for row in range(0, num_rows, rows):
        for head in range(0, num_heads, heads):
            yield slice(row, row + rows), slice(head, head + heads)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, how: Decode
) -> torch.Tensor:
    """Softmax attention; with a soft cap, which SDPA does not know, written out."""
    if how.softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=how.scale)
    scores = (query @ key.transpose(-1, -2)).to(torch.float32)
    scores = torch.tanh(scores * (how.scale / how.softcap)) * how.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return softmax(scores, dim=-1).to(value.dtype) @ value
