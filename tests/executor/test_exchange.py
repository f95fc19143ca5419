"""Queries that leave for the CPU and results that come back, through memory that a device and the host both address."""

from __future__ import annotations

import pytest
import torch

from executor.arena import Arena
from executor.attend import Math, attend_rows, rows_errand
from executor.attention import Exchange
from executor.cache import KvView

ROWS, HEADS, KV_HEADS, HEAD_DIM, TOKENS = 3, 4, 2, 64, 21
HOW = Math(scale=HEAD_DIM**-0.5, window=None, softcap=None)


def cached(dtype: torch.dtype) -> KvView:
    """K and V of some rows, full."""
    values = torch.randn(TOKENS, 2, ROWS, KV_HEADS * HEAD_DIM).to(dtype)
    vector_bytes = KV_HEADS * HEAD_DIM * dtype.itemsize
    return KvView(
        data=values.view(torch.uint8).flatten(),
        rows=ROWS,
        stride=2 * ROWS * vector_bytes,
        kept=TOKENS,
        num_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=dtype,
        quantised=False,
        vector_bytes=vector_bytes,
    )


@pytest.fixture
def exchange() -> Exchange:
    """As with a GPU: what the device addresses is the same memory."""
    made = Exchange(2 * 2 * ROWS * HEADS * HEAD_DIM * torch.float32.itemsize, torch.device("cpu"))
    made._on_device = made._arena.tensor
    return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_is_that_of_attention_on_the_spot(dtype: torch.dtype, exchange: Exchange) -> None:
    """To the last bit, in the model's dtype, with padding, for one gpu batch after the other."""
    torch.set_num_threads(1)
    pads = torch.tensor([0, 5, TOKENS - 1])
    for _ in range(3):
        view, query = cached(dtype), torch.randn(ROWS, 1, HEADS, HEAD_DIM).to(dtype).transpose(1, 2)
        expected, found = torch.empty_like(query), torch.full_like(query, torch.nan)
        attend_rows(query, view, 0, TOKENS, pads, HOW, expected)
        (message,) = exchange.send([query])
        rows_errand(message.query, view, 0, TOKENS, pads, HOW, message.result, 1)()
        message.bring_back(found)
        assert torch.equal(found, expected)


def test_two_gpu_batches_do_not_meet(exchange: Exchange) -> None:
    """What is sent for the second one leaves the first one's queries, and its result, as they are."""
    queries = [torch.randn(ROWS, HEADS, 1, HEAD_DIM).half() for _ in range(2)]
    (first,) = exchange.send(queries[:1])
    exchange.half = 1
    (second,) = exchange.send(queries[1:])
    first.result.fill_(1.0)
    second.result.fill_(2.0)
    assert torch.equal(first.query.half(), queries[0])
    assert torch.equal(second.query.half(), queries[1])
    assert bool((first.result == 1.0).all())


def test_queries_of_several_tiers_lie_side_by_side(exchange: Exchange) -> None:
    """Rows of host memory and rows of the disk in one gpu batch, as many as there is room for."""
    query = torch.randn(ROWS, HEADS, 1, HEAD_DIM)
    one, two = exchange.send([query[:1], query[1:]])
    one.result.zero_()
    assert torch.equal(torch.cat((one.query, two.query)), query)
    assert isinstance(exchange._arena, Arena)
