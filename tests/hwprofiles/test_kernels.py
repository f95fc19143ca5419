"""Kernels against their references: on CUDA, and without it in Triton's interpreter where that is installed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from executor.attend import Math, attend_rows, attend_rows_reference
from executor.cache import KvView
from hwprofiles.packing import quantised_bytes
from hwprofiles.probes.cpu_attention import Decode, attend_plain
from hwprofiles.probes.quantize import dequantise_reference, quantise_reference, split_packed

ON_CUDA = torch.cuda.is_available()


def can_interpret() -> bool:
    """Whether Triton's interpreter works here: it needs a numpy that makes numbers of arrays of one element."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            int(np.zeros(1))
        except TypeError:
            return False
    return find_spec("triton") is not None and not ON_CUDA


DEVICES = [
    pytest.param("cuda", marks=pytest.mark.gpu),
    pytest.param(
        "cpu", id="interpreted", marks=pytest.mark.skipif(not can_interpret(), reason="no interpreter")
    ),
]
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _interpret_on_cpu() -> Iterator[None]:
    """Kernels that are imported without a CUDA device are interpreted."""
    if not ON_CUDA:
        os.environ["TRITON_INTERPRET"] = "1"
    yield
    os.environ.pop("TRITON_INTERPRET", None)


def awkward(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Vectors [a, b, c, n], a, b, c >= 2, of random values and of all that is not ordinary."""
    values = torch.randn(shape)
    values[0, 0, 1] *= 1e-7
    values[0, 1, 0] = 0.0
    values[0, 1, 0, 1::2] = -0.0
    values[0, 1, 1] = 3.0
    values[1, 0, 0, -1] = torch.nan
    values[1, 0, 1, 0] = torch.inf
    values[1, 1, 0, shape[3] // 2] = -torch.inf
    values[1, 1, 1] *= 1e4 if dtype == torch.float16 else 1e30
    return values.to(dtype)


def packed_of(values: torch.Tensor) -> torch.Tensor:
    """By the reference on the CPU."""
    packed = torch.zeros(*values.shape[:-1], quantised_bytes(values.shape[-1]), dtype=torch.uint8)
    quantise_reference(values, packed)
    return packed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 63, 64, 70, 256, 1000])
def test_quantised_bytes_are_the_references(n: int, dtype: torch.dtype, device: str) -> None:
    """Byte for byte, whatever the values: constant groups, outliers beyond float16, infinities, NaN, -0."""
    from hwprofiles.probes.kernels import quantize as kernels  # noqa: PLC0415

    values = awkward((2, 3, 2, n), dtype)
    packed = torch.full((2, 3, 2, quantised_bytes(n)), 99, dtype=torch.uint8, device=device)
    kernels.quantise(values.to(device), packed)
    assert torch.equal(packed.cpu(), packed_of(values))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 63, 64, 70, 256, 1000])
def test_dequantised_values_are_the_references(n: int, dtype: torch.dtype, device: str) -> None:
    """Bit for bit, from a strided cache to a strided result; what was not finite is NaN."""
    from hwprofiles.probes.kernels import quantize as kernels  # noqa: PLC0415

    values = awkward((2, 3, 2, n), torch.float32)
    packed = torch.full((2, 3, 7, quantised_bytes(n)), 99, dtype=torch.uint8)
    packed[:, :, 2:4] = packed_of(values)
    expected = torch.empty(2, 3, 2, n, dtype=dtype)
    dequantise_reference(packed[:, :, 2:4], n, expected)
    out = torch.full((2, 3, 5, n), 99, dtype=dtype, device=device)
    kernels.dequantise(packed.to(device)[:, :, 2:4], n, out[:, :, 1:3])
    assert bool((out[:, :, 0] == 99).all())
    assert bool((out[:, :, 3:] == 99).all())
    assert bool(expected[1, 0, 0, -1].isnan())
    # the interpreter cuts bfloat16 off where the hardware rounds
    cut = (
        {"rtol": 2**-7, "atol": 0.0}
        if dtype == torch.bfloat16 and not ON_CUDA
        else {"rtol": 0.0, "atol": 0.0}
    )
    torch.testing.assert_close(out[:, :, 1:3].cpu(), expected, equal_nan=True, **cut)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(64,), (5000, 1, 70, 8192), (64, 128, 4096 * 3, 63, 1000)])
def test_several_vectors_at_once_are_the_references(
    lengths: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    """Wherever they lie, before or after the first one; what lies between them is left alone."""
    from hwprofiles.probes.kernels import quantize as kernels  # noqa: PLC0415

    source = torch.full((2**16,), 99, dtype=torch.uint8, device=device)
    target = torch.full((2**16,), 99, dtype=dtype, device=device)
    vectors, expected, at, to = [], target.clone(), 2**16, 0
    for n in lengths:  # from the end on, and to the start on
        at -= -(-quantised_bytes(n) // 256) * 256
        packed = packed_of(torch.randn(n))
        source[at : at + packed.numel()] = packed.to(device)
        values = torch.empty(n, dtype=dtype)
        dequantise_reference(packed, n, values)
        expected[to : to + n] = values.to(device)
        vectors.append((source[at : at + packed.numel()], n, target[to : to + n]))
        to += -(-n // 128) * 128
    kernels.DequantiseAll(vectors)()
    cut = {"rtol": 2**-7 if dtype == torch.bfloat16 and not ON_CUDA else 0.0, "atol": 0.0}
    torch.testing.assert_close(target, expected, **cut)


@pytest.mark.gpu
def test_a_large_tensor_on_cuda() -> None:
    """A layer's largest matrix, flat: every value is the reference's."""
    from hwprofiles.probes.quantize import dequantise, quantise  # noqa: PLC0415

    n = 7168 * 28672 + 5
    values = torch.randn(n, device="cuda", dtype=torch.float16)
    packed, expected = (
        torch.full((quantised_bytes(n),), 99, dtype=torch.uint8, device="cuda") for _ in range(2)
    )
    quantise(values, packed)
    quantise_reference(values, expected)
    assert torch.equal(packed, expected)
    out, expected = (torch.full((n,), 99, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    dequantise(packed, n, out)
    dequantise_reference(packed, n, expected)
    assert torch.equal(out, expected)
    with pytest.raises(ValueError, match="not finite"):
        quantise(
            values.index_fill_(0, torch.tensor([n - 1], device="cuda"), torch.nan), packed, check_finite=True
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 128), (2, 64), (3, 80), (2, 16), (4, 256)])
def test_new_k_and_v_are_stored_as_the_reference_does(heads: int, head_dim: int, device: str) -> None:
    """K as rotary embeddings leave it, V as a projection does, at a token and row of a larger cache."""
    from hwprofiles.probes.kernels import quantize as kernels  # noqa: PLC0415

    key = torch.randn(3, heads, 5, head_dim).half()
    value = torch.randn(3, 5, heads, head_dim).half().transpose(1, 2)
    n = heads * head_dim
    cache = torch.full((9, 2, 6, quantised_bytes(n)), 99, dtype=torch.uint8, device=device)
    kernels.quantise_pair(key.to(device), value.to(device), cache[2:7, :, 1:4])
    both = torch.stack((key, value)).permute(3, 0, 1, 2, 4).flatten(3)
    assert torch.equal(cache[2:7, :, 1:4].cpu(), packed_of(both))
    cache[2:7, :, 1:4] = 99
    assert bool((cache == 99).all())


def attended(query: torch.Tensor, values: torch.Tensor, how: Decode) -> torch.Tensor:
    """float32 attention to [tokens, 2, rows, n]."""
    return attend_plain(query.float(), values.float(), how)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("packed", [False, True], ids=["16 bit", "4 bit"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "heads", "group", "head_dim", "tokens", "start", "padded", "softcap", "shares"),
    [
        (3, 2, 1, 64, 50, 0, False, None, 1),
        (2, 2, 3, 128, 70, 5, True, None, 3),
        (2, 3, 2, 80, 40, 0, True, 20.0, 2),
        (1, 1, 71, 16, 33, 3, False, None, 2),
        (2, 2, 1, 192, 33, 0, True, None, None),
        (2, 4, 8, 128, 130, 100, True, None, None),
        (4, 2, 2, 64, 90, 131, True, None, 3),
        (4, 2, 2, 64, 40, 79, True, 9.0, 1),
    ],
)
def test_decode_attention(
    rows: int,
    heads: int,
    group: int,
    head_dim: int,
    tokens: int,
    start: int,
    padded: bool,
    softcap: float | None,
    shares: int | None,
    dtype: torch.dtype,
    packed: bool,
    device: str,
) -> None:
    """Within its dtype's tolerance of dequantised K and V and a float32 softmax: strides, padding, caps.

    The tokens lie where a cache that has gone round has them; the reference has them in order.
    """
    from hwprofiles.probes.kernels import attention as kernels  # noqa: PLC0415

    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("the interpreter has no bfloat16 products")
    n = heads * head_dim
    values = torch.randn(tokens, 2, rows + 2, n).to(dtype)
    cache = values
    if packed:
        cache = packed_of(values)
        dequantise_reference(cache, n, values)
    around = (torch.arange(tokens) - start) % tokens
    flat = cache[around].flatten(1)
    apart = torch.cat((flat, flat.new_zeros(tokens, 64)), dim=1).to(
        device
    )  # tokens lie apart, as on disk pages
    cache = apart[:, : flat.shape[1]].unflatten(1, cache.shape[1:])[:, :, 1 : 1 + rows]
    pads = torch.randint(0, tokens, (rows,)) if padded else None
    query = torch.randn(rows, 1, heads * group, head_dim).to(dtype).transpose(1, 2)
    how = Decode(num_heads=heads, start=0, pads=pads, scale=head_dim**-0.5, softcap=softcap)
    out = torch.full(query.shape, torch.nan, dtype=dtype, device=device)
    there = Decode(
        num_heads=heads,
        start=start,
        pads=None if pads is None else (pads + start).to(device),
        scale=how.scale,
        softcap=softcap,
    )
    kernels.attend(query.to(device), cache, out, there, num_shares=shares)
    expected = attended(query, values[:, :, 1 : 1 + rows], how)
    tolerance = {torch.float32: 3e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(out.cpu().float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shares", [1, 3])
@pytest.mark.parametrize("packed", [False, True], ids=["16 bit", "4 bit"])
def test_nan_does_not_pass(packed: bool, shares: int, device: str) -> None:
    """A row that sees a NaN is NaN in that head, and no other row or head is."""
    from hwprofiles.probes.kernels import attention as kernels  # noqa: PLC0415

    values = torch.randn(70, 2, 3, 128).half()
    values[9, 1, 1, 64 + 20] = torch.nan
    cache = packed_of(values) if packed else values
    query = torch.randn(3, 2, 1, 64).half().to(device)
    out = torch.zeros_like(query)
    how = Decode(num_heads=2, start=0, pads=None, scale=0.125, softcap=None)
    kernels.attend(query, cache.to(device), out, how, num_shares=shares)
    spoilt = out.isnan().any(-1)[..., 0].cpu()
    assert spoilt.tolist() == [[False, False], [False, True], [False, False]]


def test_constants_of_a_spoilt_group() -> None:
    """What says that a group is not finite: scale NaN, minimum 0, all codes 0."""
    packed = packed_of(torch.tensor([1.0, torch.inf, -2.0]))
    codes, constants = split_packed(packed, 3)
    assert int(codes.sum()) == 0
    assert bool(constants[0, 0].isnan())
    assert float(constants[0, 1]) == 0.0


@pytest.mark.gpu
@pytest.mark.parametrize("quantised", [False, True], ids=["16 bit", "4 bit"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_a_cache_on_cuda_gives_the_references_attention(
    head_dim: int, dtype: torch.dtype, quantised: bool
) -> None:
    """Through the cache's own views: written prompt and token by token, attended with padding and a window."""
    heads, rows, tokens, size, window = 4, 6, 41, dtype.itemsize, 25
    vector_bytes = quantised_bytes(heads * head_dim) if quantised else heads * head_dim * size
    view = KvView(
        data=torch.zeros(window * 2 * rows * vector_bytes, dtype=torch.uint8, device="cuda"),
        rows=rows,
        kept=window,
        stride=2 * rows * vector_bytes,
        num_heads=heads,
        head_dim=head_dim,
        dtype=dtype,
        quantised=quantised,
        vector_bytes=vector_bytes,
    )
    key, value = (torch.randn(rows, heads, tokens, head_dim, device="cuda").to(dtype) for _ in range(2))
    view.write(0, 0, key[:4, :, :30], value[:4, :, :30])
    view.write(0, 4, key[4:, :, :30], value[4:, :, :30])
    for token in range(30, tokens):
        view.write(token, 0, key[:, :, token : token + 1], value[:, :, token : token + 1])
    pads = torch.tensor([0, 7, 20, 0, 3], device="cuda")
    query = torch.randn(5, heads * 2, 1, head_dim, device="cuda").to(dtype)
    how = Math(scale=head_dim**-0.5, window=window, softcap=None)
    out, expected = torch.full_like(query, torch.nan), torch.full_like(query, torch.nan)
    attend_rows(query, view, 1, tokens, pads, how, out)
    decode = Decode(num_heads=heads, start=tokens - window, pads=pads, scale=how.scale, softcap=None)
    attend_rows_reference(query, view, 1, tokens, decode, expected)
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("packed", [False, True], ids=["16 bit", "4 bit"])
@pytest.mark.parametrize("length", [0, 1, 17, 69, 199])
@pytest.mark.parametrize("shares", [None, 1, 3, 7])
def test_decode_attention_reads_how_many_tokens_there_are(
    shares: int | None, length: int, packed: bool, device: str
) -> None:
    """From a tensor on the device: as if the cache had no more tokens, whatever lies behind them."""
    from hwprofiles.probes.kernels import attention as kernels  # noqa: PLC0415

    rows, heads, head_dim, room = 3, 2, 64, 200
    values = torch.randn(room, 2, rows, heads * head_dim).half()
    values[length + 1 :] = torch.nan
    cache = packed_of(values) if packed else values
    if packed:
        dequantise_reference(cache, heads * head_dim, values)
    pads = torch.tensor([0, length // 2, length])
    query = torch.randn(rows, heads, 1, head_dim).half()
    how = Decode(num_heads=heads, start=0, pads=pads, scale=head_dim**-0.5, softcap=None)
    there = Decode(num_heads=heads, start=0, pads=pads.to(device), scale=how.scale, softcap=None)
    out = torch.full(query.shape, torch.nan, dtype=torch.float16, device=device)
    kernels.attend(
        query.to(device),
        cache.to(device),
        out,
        there,
        length=torch.tensor([length], device=device),
        num_shares=shares,
    )
    expected = attended(query, values[: length + 1], how)
    torch.testing.assert_close(out.cpu().float(), expected, rtol=5e-3, atol=5e-3)
