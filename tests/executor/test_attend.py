"""Attention of a prompt to itself and of one new token to the cache, against attention written out in float64."""

from __future__ import annotations

import pytest
import torch

from executor import attend
from executor.attend import Math, attend_prompt, attend_rows, attend_rows_reference
from executor.cache import KvView
from hwprofiles.packing import quantised_bytes
from hwprofiles.probes.cpu_attention import Decode

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny matrices gain nothing from more."""
    torch.set_num_threads(1)


def written_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    first: int,
    pads: torch.Tensor | None,
    how: Math,
) -> torch.Tensor:
    """[rows, heads, queries, head_dim]; query i is at position `first` + i of the keys; zeros where it is padding."""
    query, key, value = (x.detach().cpu().double() for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * how.scale
    if how.softcap is not None:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    distance = first + torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])
    seen = distance >= 0 if how.window is None else (distance >= 0) & (distance < how.window)
    seen = seen.expand(query.shape[0], 1, -1, -1)
    if pads is not None:
        seen = seen & (torch.arange(key.shape[2]) >= pads[:, None])[:, None, None, :]
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    return weights @ value


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("pads", [None, [0, 0, 3, 3, 22]])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (7, None), (None, 5.0), (9, 5.0), (100, None)])
def test_prompts(
    window: int | None,
    softcap: float | None,
    pads: list[int] | None,
    group: int,
    dtype: torch.dtype,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ragged prompts, windows, soft caps, shared K and V, scores in several blocks: each token sees what it should."""
    monkeypatch.setattr(attend, "_SCORE_BYTES", 6 * 4 * 5 * 2 * group * 23)
    query = torch.randn(5, 23, 2 * group, 16, device=device).to(dtype).transpose(1, 2)
    key, value = (torch.randn(5, 2, 23, 16, device=device).to(dtype) for _ in range(2))
    how = Math(scale=0.3, window=window, softcap=softcap)
    on_host = None if pads is None else torch.tensor(pads)
    result = attend_prompt(query, key, value, on_host, how)
    expected = written_out(query, key, value, 0, on_host, how)
    assert result.shape == query.shape
    torch.testing.assert_close(result.cpu().double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("quantised", [False, True], ids=["16 bit", "4 bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "group"), [(64, 1), (80, 2), (20, 3), (128, 8)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (7, 3.0), (33, None), (100, None)])
def test_one_new_token(
    window: int | None, softcap: float | None, head_dim: int, group: int, dtype: torch.dtype, quantised: bool
) -> None:
    """Compiled and in plain torch, the CPU gives the attention of what the cache holds, which is what is in a window.

    A prompt is written at once and what follows token by token; a cache that keeps all tells what was written.
    """
    heads, rows, tokens = 2, 3, 37
    vector_bytes = quantised_bytes(heads * head_dim) if quantised else heads * head_dim * dtype.itemsize
    stride = 2 * rows * vector_bytes + 128
    whole, view = (
        KvView(
            data=torch.zeros(kept * stride, dtype=torch.uint8),
            rows=rows,
            kept=kept,
            stride=stride,
            num_heads=heads,
            head_dim=head_dim,
            dtype=dtype,
            quantised=quantised,
            vector_bytes=vector_bytes,
        )
        for kept in (tokens, min(tokens, window or tokens))
    )
    key, value = (torch.randn(rows, heads, tokens, head_dim).to(dtype) for _ in range(2))
    whole.write(0, 0, key, value)
    for start, stop in ((0, 30), *((token, token + 1) for token in range(30, tokens))):
        view.write(start, 0, key[:, :, start:stop], value[:, :, start:stop])
    key, value = whole.read(0, tokens, 1, 2)
    query, pads = torch.randn(2, heads * group, 1, head_dim).to(dtype), torch.tensor([0, 33])
    how = Math(scale=head_dim**-0.5, window=window, softcap=softcap)
    out, plain = torch.full_like(query, torch.nan), torch.full_like(query, torch.nan)
    attend_rows(query, view, 1, tokens, pads, how, out)
    start = 0 if window is None else max(0, tokens - window)
    decode = Decode(num_heads=heads, start=start, pads=pads, scale=how.scale, softcap=softcap)
    attend_rows_reference(query, view, 1, tokens, decode, plain)
    expected = written_out(query, key, value, tokens - 1, pads, how)
    for result in (out, plain):
        torch.testing.assert_close(result.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
