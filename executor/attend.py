"""The mathematics of attention: of a prompt to itself, and of one new token a row to the cache."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn import functional

from executor.cache import KvView
from hwprofiles.probes.cpu_attention import Decode, attend_native, attend_plain, native_call
from hwprofiles.probes.kernels import AMPERE, usable
from planner.layout import ATTENTION_CHUNK_BYTES

_SCORE_BYTES = 64 * 2**20
"""Scores or masks of a prompt that are held at once where they cannot be avoided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Math:
    """What a layer's attention asks for beside queries, keys and values."""

    scale: float
    window: int | None
    softcap: float | None


def attend_prompt(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pads: torch.Tensor | None, how: Math
) -> torch.Tensor:
    """Causal attention of a prompt to itself: [rows, heads, tokens, head_dim]; zeros where there is padding.

    `pads` [rows] is on the host. Rows of equal padding are attended together, without it, so that no mask is needed.
    """
    if pads is None:
        return _attend_causal(query, key, value, how)
    rows, heads, tokens, head_dim = query.shape
    result = query.new_zeros(rows, tokens, heads, head_dim).transpose(1, 2)
    for first, count, pad in _runs(pads.tolist()):
        run = (slice(first, first + count), slice(None), slice(pad, None))
        result[run] = _attend_causal(query[run], key[run], value[run], how)
    return result


def _runs(pads: list[int]) -> Iterator[tuple[int, int, int]]:
    """(first row, rows, padding) of neighbours that are padded alike."""
    first = 0
    for pad, rows in itertools.groupby(pads):
        count = len(list(rows))
        yield first, count, pad
        first += count


def _attend_causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: Math) -> torch.Tensor:
    num_tokens = query.shape[2]
    window = how.window if how.window is not None and how.window < num_tokens else None
    if window is None and how.softcap is None:
        return _sdpa(query, key, value, None, how.scale, causal=True)
    result = torch.empty_like(query)
    for first, last in _query_blocks(query, window):
        low = 0 if window is None else max(0, first - window + 1)
        position = torch.arange(low, last, device=query.device)
        distance = position[first - low :, None] - position
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        block, keys = query[:, :, first:last], slice(low, last)
        result[:, :, first:last] = _attend_masked(block, key[:, :, keys], value[:, :, keys], seen, how)
    return result


def _query_blocks(query: torch.Tensor, window: int | None) -> Iterator[tuple[int, int]]:
    """(first, last) of queries whose scores fit in _SCORE_BYTES; with a window no more than it, to skip keys."""
    rows, heads, num_tokens, _ = query.shape
    count = max(1, _SCORE_BYTES // (rows * heads * num_tokens * torch.float32.itemsize))
    if window is not None:
        count = min(count, window)
    for first in range(0, num_tokens, count):
        yield first, min(num_tokens, first + count)


def attend_rows(
    query: torch.Tensor,
    view: KvView,
    row: int,
    total: int,
    pads: torch.Tensor | None,
    how: Math,
    out: torch.Tensor,
    length: torch.Tensor | None = None,
) -> None:
    """One new token's attention to the last of `total` tokens, as many as a view keeps, of its rows from `row` on.

    Queries and `out` are [rows, heads, 1, head_dim]; `pads` [rows] is on their device. With `length`, [1] int64 on a
    GPU, the tokens are as many as that and one more, when the kernel runs; there must be no window then.
    """
    reach = total if length is None else view.kept
    tokens, decode = _seen(view, row, query.shape[0], reach, pads, how)
    if usable(query.device, AMPERE):
        from hwprofiles.probes.kernels import attention as kernels  # noqa: PLC0415 - needs Triton

        kernels.attend(query, tokens, out, decode, length=length)
        return
    result = None
    if query.device.type == "cpu":
        result = attend_native(query, tokens, decode)
    if result is None:
        attend_rows_reference(query, view, row, total, decode, out)
    else:
        out.copy_(result)


def rows_errand(
    query: torch.Tensor,
    view: KvView,
    row: int,
    total: int,
    pads: torch.Tensor | None,
    how: Math,
    out: torch.Tensor,
    threads: int,
) -> Callable[[], None]:
    """`attend_rows` on the CPU for a query that is yet to come: what another thread calls once it is there.

    Every operation of torch would make that thread wait for Python's lock, which the caller's thread holds by then: the
    compiled attention is prepared here, and reads and writes float32.
    """
    if query.dtype == torch.float32 and query.is_contiguous() and out.is_contiguous():
        tokens, decode = _seen(view, row, query.shape[0], total, pads, how)
        call = native_call(query, tokens, decode, out, threads)
        if call is not None:
            return call
    return partial(attend_rows, query, view, row, total, pads, how, out)


def _seen(
    view: KvView, row: int, num_rows: int, total: int, pads: torch.Tensor | None, how: Math
) -> tuple[torch.Tensor, Decode]:
    """The cached tokens that are attended to, and how."""
    tokens = view.tokens(0, total, row, num_rows)
    assert tokens.shape[0] == min(total, how.window or total), (
        "the cache keeps what the layer's window lets through"
    )
    decode = Decode(
        num_heads=view.num_heads,
        start=total - tokens.shape[0],
        pads=pads,
        scale=how.scale,
        softcap=how.softcap,
    )
    return tokens, decode


def attend_rows_reference(
    query: torch.Tensor, view: KvView, row: int, total: int, decode: Decode, out: torch.Tensor
) -> None:
    """`attend_rows` in plain torch, in chunks of rows where K and V have to be dequantised."""
    per_row = 2 * min(total, view.kept) * view.num_heads * view.head_dim * view.dtype.itemsize
    count = max(1, ATTENTION_CHUNK_BYTES // per_row) if view.quantised else query.shape[0]
    for first in range(0, query.shape[0], count):
        rows = slice(first, first + count)
        pads = None if decode.pads is None else decode.pads[rows]
        values = view.values(0, total, row + first, query[rows].shape[0])
        out[rows] = attend_plain(query[rows], values, dataclasses.replace(decode, pads=pads))


def _attend_masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, how: Math
) -> torch.Tensor:
    """Attention where `seen` [queries, keys]; with a soft cap, which SDPA does not know, written out."""
    if how.softcap is None:
        return _sdpa(query, key, value, seen, how.scale, causal=False)
    rows, heads, num_queries, head_dim = query.shape
    grouped = query.reshape(
        rows, key.shape[1], -1, head_dim
    )  # query heads of one K head, one after the other
    scores = (grouped @ key.transpose(-1, -2)).to(torch.float32)
    scores = torch.tanh(scores * (how.scale / how.softcap)) * how.softcap
    scores = scores.unflatten(2, (-1, num_queries)).masked_fill(~seen, -torch.inf)
    weights = functional.softmax(scores, dim=-1).to(value.dtype).flatten(2, 3)
    return (weights @ value).view(rows, heads, num_queries, head_dim)


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    *,
    causal: bool,
) -> torch.Tensor:
    """torch's attention; K and V are repeated where its fast kernels would not share them among query heads."""
    groups = query.shape[1] // key.shape[1]
    shares = groups > 1
    if shares and query.device.type == "cuda":
        shares = can_use_flash_attention(SDPAParams(query, key, value, mask, 0.0, causal, True))
    if groups > 1 and not shares:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, is_causal=causal, enable_gqa=shares
    )
