"""The CPU's decode attention: compiled where there is a compiler, and in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hwprofiles.native_attention import find_attention
from hwprofiles.packing import quantised_bytes
from hwprofiles.probes.cpu_attention import Decode, attend_native, attend_plain
from hwprofiles.probes.quantize import dequantise_reference, quantise_reference

Attend = Callable[[torch.Tensor, torch.Tensor, Decode], torch.Tensor | None]
needs_compiler = pytest.mark.skipif(find_attention() is None, reason="no C compiler")
ATTENDS = [
    pytest.param(attend_native, id="compiled", marks=needs_compiler),
    pytest.param(attend_plain, id="plain"),
]


@pytest.fixture
def _fresh() -> Iterator[None]:
    """What was found is forgotten before and after."""
    find_attention.cache_clear()
    yield
    find_attention.cache_clear()


@pytest.mark.parametrize("attend", ATTENDS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_many_rows_and_long_contexts(dtype: torch.dtype, threads: int, attend: Attend) -> None:
    """More tasks than threads, more tokens than a tile, heads in more than one task: as in float64."""
    tokens = torch.randn(301, 2, 5, 40 * 64).to(dtype)
    query = torch.randn(5, 80, 1, 64).to(dtype)
    torch.set_num_threads(threads)
    result = attend(query, tokens, Decode(num_heads=40, start=0, pads=None, scale=0.125, softcap=None))
    assert result is not None
    key, value = tokens.double().unflatten(-1, (40, 64)).permute(1, 2, 3, 0, 4)
    scores = query.double().view(5, 40, 2, 64) @ key.transpose(-1, -2) * 0.125
    expected = (scores.softmax(-1) @ value).view(query.shape)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def stored_as(dtype: torch.dtype, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors as a cache holds them, packed where `dtype` is uint8, and what they then are in float64."""
    if dtype != torch.uint8:
        return values.to(dtype), values.to(dtype).double()
    packed = torch.empty(*values.shape[:-1], quantised_bytes(values.shape[-1]), dtype=torch.uint8)
    quantise_reference(values, packed)
    back = torch.empty_like(values)
    dequantise_reference(packed, values.shape[-1], back)
    return packed, back.double()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("head_dim", [17, 64, 80, 96, 128, 256])
def test_any_shape(head_dim: int, group: int, dtype: torch.dtype) -> None:
    """Blocks of tokens and vectors of values that are not full; what lies before and after is not read."""
    torch.set_num_threads(1)
    heads = 3
    for num_tokens in (1, 7, 8, 9, 37, 130):
        pads = torch.tensor([2, num_tokens + 1])
        values = torch.randn(num_tokens + 12, 2, 2, heads * head_dim)
        values[:2], values[num_tokens + 2 :] = torch.nan, torch.nan
        tokens, kept = (x[: num_tokens + 2] for x in stored_as(dtype, values))
        query = torch.randn(2, heads * group, 1, head_dim)
        how = Decode(num_heads=heads, start=0, pads=pads, scale=head_dim**-0.5, softcap=None)
        result = attend_native(query, tokens, how)
        assert result is not None
        key, value = kept[2:].unflatten(-1, (heads, head_dim)).permute(1, 2, 3, 0, 4)
        scores = query.double().view(2, heads, group, head_dim) @ key.transpose(-1, -2) * how.scale
        scores[1, ..., :-1] = -torch.inf
        expected = (scores.softmax(-1) @ value).view(query.shape)
        torch.testing.assert_close(result.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("attend", ATTENDS)
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("start", [0, 1, 150, 300, 301, 1000])
def test_a_cache_that_has_gone_round(start: int, softcap: float | None, attend: Attend) -> None:
    """Token t in place t mod 301: the same as with the tokens in order, each row from its own first token on."""
    tokens, pads = torch.randn(301, 2, 4, 3 * 32), torch.tensor([0, 1, 250, 300])
    query = torch.randn(4, 6, 1, 32)
    how = Decode(num_heads=3, start=0, pads=pads, scale=0.2, softcap=softcap)
    expected = attend(query, tokens, how)
    around = torch.empty_like(tokens)
    around[(start + torch.arange(301)) % 301] = tokens
    result = attend(query, around, replace(how, start=start, pads=pads + start))
    assert result is not None
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attend", ATTENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", [0, 1], ids=["K", "V"])
@pytest.mark.parametrize("token", [0, 150, 200])
def test_not_finite_is_not_silent(token: int, kind: int, bad: float, attend: Attend) -> None:
    """A head that sees an infinity or a NaN is not finite, and its neighbours are untouched."""
    tokens = torch.randn(201, 2, 2, 3 * 32)
    tokens[token, kind, 1, 40] = bad
    query = torch.rand(2, 3, 1, 32) + 0.1
    result = attend(query, tokens, Decode(num_heads=3, start=0, pads=None, scale=1.0, softcap=None))
    assert result is not None
    finite = result.isfinite().all(-1)[..., 0]
    assert finite.tolist() == [[True, True, True], [True, False, True]]


@pytest.mark.parametrize("attend", ATTENDS)
def test_large_scores(attend: Attend) -> None:
    """Scores whose exponentials overflow float32: the softmax is stable, whatever comes first."""
    tokens = torch.zeros(300, 2, 1, 16)
    tokens[:, 0, 0, 0] = torch.arange(300.0) * torch.tensor([1.0, -1.0]).repeat(150)
    tokens[:, 1, 0, 3] = torch.arange(300.0)
    query = torch.zeros(1, 1, 1, 16)
    query[..., 0] = 1e4
    result = attend(query, tokens, Decode(num_heads=1, start=0, pads=None, scale=1.0, softcap=None))
    assert result is not None
    assert float(result[0, 0, 0, 3]) == 298.0


@needs_compiler
@pytest.mark.usefixtures("_fresh")
def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is kept in the user's cache directory and found there the next time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_attention() is not None
    (library,) = (tmp_path / "tierplan").iterdir()
    made = library.stat().st_mtime_ns
    find_attention.cache_clear()
    assert find_attention() is not None
    assert library.stat().st_mtime_ns == made


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("compiler", ["/bin/false", "/nowhere/cc"])
def test_without_a_compiler_there_is_none(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that fails, or none at all, is no error: plain torch takes over."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    if compiler.startswith("/nowhere"):
        monkeypatch.setenv("PATH", str(tmp_path))
    assert find_attention() is None
    tokens, how = torch.randn(3, 2, 1, 16), Decode(num_heads=1, start=0, pads=None, scale=1.0, softcap=None)
    assert attend_native(torch.randn(1, 1, 1, 16), tokens, how) is None
