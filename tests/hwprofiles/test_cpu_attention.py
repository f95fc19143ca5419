"""The CPU's decode attention: compiled where there is a compiler, and in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hwprofiles.native_attention import find_attention
from hwprofiles.probes.cpu_attention import Decode, attend_native, attend_plain

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
