"""Requests to blocks of gpu batches."""

from __future__ import annotations

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from executor.batching import make_blocks
from planner.prompts import Request

_PAD_ID = 9999


def _requests(lengths: list[tuple[int, int]]) -> list[Request]:
    return [
        Request(
            custom_id=f"r{index}",
            index=index,
            prompt_ids=tuple(range(index, index + prompt_len)),
            max_tokens=max_tokens,
        )
        for index, (prompt_len, max_tokens) in enumerate(lengths)
    ]


_JOBS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), min_size=1, max_size=40).map(_requests)


@given(_JOBS, st.integers(1, 6), st.integers(1, 4))
def test_every_request_is_in_one_gpu_batch(
    requests: list[Request], gpu_batch_size: int, num_gpu_batches: int
) -> None:
    """None is lost or doubled, no gpu batch is empty or too large, and only the last block is smaller."""
    blocks = make_blocks(
        requests, gpu_batch_size=gpu_batch_size, num_gpu_batches=num_gpu_batches, pad_id=_PAD_ID
    )
    batches = [batch for block in blocks for batch in block.gpu_batches]
    assert sorted(r.index for batch in batches for r in batch.requests) == list(range(len(requests)))
    assert all(1 <= len(batch.requests) <= gpu_batch_size for batch in batches)
    for block in blocks[:-1]:
        assert [len(batch.requests) for batch in block.gpu_batches] == [gpu_batch_size] * num_gpu_batches
    sizes = [len(batch.requests) for batch in blocks[-1].gpu_batches]
    assert len(sizes) <= num_gpu_batches
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-sum(sizes) // gpu_batch_size)


@given(_JOBS, st.integers(1, 6), st.integers(1, 4))
def test_rows_are_padded_at_the_left(
    requests: list[Request], gpu_batch_size: int, num_gpu_batches: int
) -> None:
    """Each row is padding, then its prompt; the longest row of a gpu batch has none."""
    for block in make_blocks(
        requests, gpu_batch_size=gpu_batch_size, num_gpu_batches=num_gpu_batches, pad_id=_PAD_ID
    ):
        for batch in block.gpu_batches:
            assert batch.input_ids.shape == (len(batch.requests), batch.prompt_len)
            assert batch.input_ids.dtype == torch.int64
            assert min(batch.pad_lens) == 0
            assert batch.gen_len == max(request.max_tokens for request in batch.requests)
            assert batch.num_pad_tokens == int((batch.input_ids == _PAD_ID).sum())
            for row, request, pad_len in zip(
                batch.input_ids.tolist(), batch.requests, batch.pad_lens, strict=True
            ):
                assert tuple(row) == (_PAD_ID,) * pad_len + request.prompt_ids


@given(_JOBS, st.integers(1, 6), st.integers(1, 4), st.randoms())
def test_longest_first_whatever_the_order_given(
    requests: list[Request], gpu_batch_size: int, num_gpu_batches: int, rng: random.Random
) -> None:
    """Prompt lengths never grow over the job, and the batches do not depend on the order of the requests."""

    def rows(job: list[Request]) -> list[list[tuple[Request, ...]]]:
        blocks = make_blocks(
            job, gpu_batch_size=gpu_batch_size, num_gpu_batches=num_gpu_batches, pad_id=_PAD_ID
        )
        return [[batch.requests for batch in block.gpu_batches] for block in blocks]

    expected = rows(requests)
    lengths = [len(r.prompt_ids) for block in expected for batch in block for r in batch]
    assert lengths == sorted(lengths, reverse=True)
    shuffled = list(requests)
    rng.shuffle(shuffled)
    assert rows(shuffled) == expected


def test_rows_of_one_length_end_together() -> None:
    """Among prompts of one length those with equal max_tokens share a gpu batch."""
    requests = _requests([(3, 1), (3, 8), (3, 1), (3, 8)])
    (block,) = make_blocks(requests, gpu_batch_size=2, num_gpu_batches=2, pad_id=0)
    assert [batch.gen_len for batch in block.gpu_batches] == [8, 1]


def test_no_requests_make_no_blocks() -> None:
    """A resumed job with nothing left has no blocks."""
    assert make_blocks([], gpu_batch_size=2, num_gpu_batches=2, pad_id=0) == []
