"""The choice of the next token, alone and beside other rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from executor.batching import make_blocks
from executor.sampling import Sampler
from planner.prompts import Request

_VOCAB = 50
_CPU = torch.device("cpu")


def _request(
    custom_id: str,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    max_tokens: int = 4,
) -> Request:
    return Request(
        custom_id=custom_id,
        index=0,
        prompt_ids=(1, 2),
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )


def _sampler(requests: Sequence[Request], eos_ids: frozenset[int] = frozenset()) -> Sampler:
    (block,) = make_blocks(requests, gpu_batch_size=len(requests), num_gpu_batches=1, pad_id=0)
    return Sampler(block.gpu_batches[0], eos_ids=eos_ids, tokenizer=None, device=_CPU)


def _draw(sampler: Sampler, logits: torch.Tensor, num_steps: int) -> list[list[int]]:
    """Ids [rows][num_steps]."""
    return torch.stack([sampler.sample(logits) for _ in range(num_steps)], dim=1).tolist()


@given(st.integers(0, 2**32), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_greedy_is_the_largest_logit(seed: int, dtype: torch.dtype) -> None:
    """Rows with temperature 0 get the argmax of their own logits, as int64, in any dtype."""
    logits = torch.randn(3, _VOCAB, generator=torch.Generator().manual_seed(seed)).to(dtype)
    ids = _sampler([_request("a"), _request("b"), _request("c", temperature=1e-6)]).sample(logits)
    assert ids.dtype == torch.int64
    assert ids.tolist() == logits.float().argmax(dim=-1).tolist()


@pytest.mark.parametrize("seed", [None, 7])
def test_a_row_draws_the_same_beside_any_others(seed: int | None) -> None:
    """What a request draws depends on its own logits and seed, not on its place or its neighbours."""
    wanted = _request("x", temperature=0.9, top_p=0.8, seed=seed)
    logits = torch.randn(1, _VOCAB, generator=torch.Generator().manual_seed(0))
    ((*alone,),) = _draw(_sampler([wanted]), logits, 20)
    others = [
        _request("a"),
        _request("b", temperature=1.5),
        wanted,
        _request("c", temperature=0.2, top_p=0.1),
    ]
    crowd = torch.randn(4, _VOCAB, generator=torch.Generator().manual_seed(1))
    crowd[2] = logits[0]
    rows = _draw(_sampler(others), crowd, 20)
    assert rows[2] == alone
    assert len(set(alone)) > 1


def test_requests_without_a_seed_draw_apart() -> None:
    """Two requests alike but for their custom_id do not repeat one another; an equal seed makes them."""
    logits = torch.zeros(2, _VOCAB)
    first, second = _draw(_sampler([_request("a", temperature=1), _request("b", temperature=1)]), logits, 20)
    assert first != second
    seeded = [_request("a", temperature=1, seed=-1), _request("b", temperature=1, seed=-1)]
    first, second = _draw(_sampler(seeded), logits, 20)
    assert first == second


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (1.0, 0.5), (1.6, 0.9), (0.3, 0.0)])
def test_draws_follow_the_warpers_of_transformers(temperature: float, top_p: float) -> None:
    """Frequencies of many draws match the probabilities that transformers' warpers leave."""
    num_draws = 4000
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(3))
    none = torch.empty(0, dtype=torch.int64)
    scores = TopPLogitsWarper(top_p)(none, TemperatureLogitsWarper(temperature)(none, logits))
    expected = scores.softmax(dim=-1)[0]
    sampler = _sampler([_request("a", temperature=temperature, top_p=top_p, seed=5)])
    (ids,) = _draw(sampler, logits, num_draws)
    counts = torch.bincount(torch.tensor(ids), minlength=8)
    assert not counts[expected == 0].any()
    error = (counts / num_draws - expected).abs()
    assert (error <= 4 * (expected * (1 - expected) / num_draws).sqrt()).all()  # four standard deviations


def test_sampling_does_not_wait_for_accept() -> None:
    """Tokens drawn one step ahead of accept are those drawn in step with it."""
    requests = [_request("a", temperature=1.0), _request("b", temperature=1.0, max_tokens=1)]
    steps = torch.randn(4, 2, _VOCAB, generator=torch.Generator().manual_seed(2))
    ahead, in_step = _sampler(requests), _sampler(requests)
    drawn = [ahead.sample(logits).tolist() for logits in steps]
    for ids in drawn:
        ahead.accept(ids)
    for logits in steps:
        in_step.accept(in_step.sample(logits).tolist())
    assert ahead.results() == in_step.results()


def test_rows_end_at_eos_or_max_tokens() -> None:
    """A row ends at an end-of-sequence token, which it does not keep, or at max_tokens."""
    sampler = _sampler([_request("a", max_tokens=4), _request("b", max_tokens=2)], eos_ids=frozenset({9, 10}))
    assert sampler.accept([5, 6])
    assert sampler.finished == (False, False)
    assert sampler.accept([5, 7])
    assert sampler.finished == (False, True)
    assert not sampler.accept([10, 7])
    first, second = sampler.results()
    assert (first.token_ids, first.finish_reason, first.text) == ((5, 5), "stop", None)
    assert (second.token_ids, second.finish_reason) == ((6, 7), "length")


def test_eos_as_the_last_allowed_token_is_a_stop() -> None:
    """A sequence that ends itself just in time ended by itself."""
    sampler = _sampler([_request("a", max_tokens=2)], eos_ids=frozenset({9}))
    sampler.accept([5])
    sampler.accept([9])
    assert sampler.results()[0].finish_reason == "stop"
