"""4-bit quantisation: sizes, error bounds, and values that are not ordinary."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.packing import GROUP_SIZE, quantised_bytes
from hwprofiles.probes.quantize import dequantise, quantise, split_packed

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def packed_of(values: torch.Tensor, *, check_finite: bool = False) -> torch.Tensor:
    """The packed bytes of values [..., n]."""
    out = torch.full((*values.shape[:-1], quantised_bytes(values.shape[-1])), 255, dtype=torch.uint8)
    quantise(values, out, check_finite=check_finite)
    return out


def round_trip(values: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values again, in `dtype`."""
    out = torch.full(values.shape, 99.0, dtype=dtype)
    dequantise(packed_of(values), values.shape[-1], out)
    return out


def padded_groups(values: torch.Tensor) -> torch.Tensor:
    """[..., groups, 64] in float32, the last group filled with the last value."""
    rest = -values.shape[-1] % GROUP_SIZE
    filler = values[..., -1:].expand(*values.shape[:-1], rest)
    return torch.cat((values, filler), dim=-1).float().unflatten(-1, (-1, GROUP_SIZE))


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 300)),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-100, 100),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_error_is_half_a_step(
    shape: tuple[int, ...], scale: float, shift: float, dtype: torch.dtype, seed: int
) -> None:
    """Every value comes back within half a step and what float16 constants lose, whatever the shape."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(shape, generator=generator) * scale + shift).to(dtype)
    groups, back = padded_groups(values), padded_groups(round_trip(values))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    rounding = 2.0**-11 * (low.abs() + (high - low)) + 15 * 2.0**-24
    bound = ((high - low) / 30 + rounding) * 1.001 + 1e-7 * groups.abs()
    assert bool(((groups - back).abs() <= bound)[..., : values.shape[-1]].all())


@pytest.mark.parametrize("n", [1, 63, 64, 65, 128, 1000])
def test_layout(n: int) -> None:
    """First all packed groups, then a float16 scale and minimum each; byte b holds values b and b + 32."""
    values = torch.arange(n, dtype=torch.float32).remainder(16).expand(2, n)
    packed = packed_of(values)
    assert packed.shape == (2, quantised_bytes(n))
    num_groups = -(-n // GROUP_SIZE)
    codes, constants = split_packed(packed, n)
    assert codes.shape == (2, num_groups, 32)
    assert constants.shape == (2, num_groups, 2)
    unpacked = torch.cat((codes & 15, codes >> 4), dim=-1).flatten(1)[:, :n]
    if n >= 16:
        assert torch.equal(unpacked[:, : n // 64 * 64].float(), values[:, : n // 64 * 64])
    assert torch.equal(round_trip(values)[:, : n // 64 * 64], values[:, : n // 64 * 64])


@pytest.mark.parametrize("n", [64, 200, 4096])
def test_quantising_again_changes_nothing(n: int) -> None:
    """What was quantised once is met exactly the second time."""
    once = round_trip(torch.randn(3, n))
    assert torch.equal(round_trip(once), once)


def test_constant_groups_are_exact() -> None:
    """A group of one value, zero included, has scale 0 and comes back as it was in float16."""
    for value in (0.0, 1.0, -3.5, 60000.0):
        values = torch.full((2, 70), value)
        assert torch.equal(round_trip(values), values)


def test_outliers_cost_only_their_group() -> None:
    """One huge value spoils its 64 neighbours and nobody else."""
    values = torch.randn(256)
    values[70] = 1000.0
    error = (round_trip(values) - values).abs()
    assert float(error[64:128].max()) <= 40
    assert float(torch.cat((error[:64], error[128:])).max()) < 0.3


def test_constants_beyond_float16_are_clamped() -> None:
    """Values that no float16 constant can reach come back finite."""
    values = torch.linspace(-1e38, 1e38, 128)
    assert bool(round_trip(values).isfinite().all())
    assert float(round_trip(torch.full((64,), 1e6))[0]) == 65504.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_is_never_silent(bad: float) -> None:
    """A bad value makes its group NaN, or raises where asked to."""
    values = torch.randn(3, 130)
    values[1, 70] = bad
    back = round_trip(values)
    assert bool(back[1, 64:128].isnan().all())
    assert int(back.isnan().sum()) == 64
    with pytest.raises(ValueError, match="not finite"):
        packed_of(values, check_finite=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_tensors_are_the_same_in_slices(dtype: torch.dtype) -> None:
    """Slices that bound the temporaries give what each vector gives by itself."""
    values = torch.randn(2, 3, 70_000).to(dtype)
    packed = packed_of(values)
    one = packed_of(values[1, 2])
    assert torch.equal(packed[1, 2], one)
    out = torch.empty_like(values)
    dequantise(packed, 70_000, out)
    again = torch.empty_like(values[1, 2])
    dequantise(one, 70_000, again)
    assert torch.equal(out[1, 2], again)


def test_strided_in_and_out() -> None:
    """A cache's rows lie apart: packed bytes and values may be strided views."""
    values = torch.randn(5, 2, 3, 64)
    packed = torch.zeros(5, 2, 6, quantised_bytes(64), dtype=torch.uint8)
    quantise(values, packed[:, :, 2:5])
    assert int(packed[:, :, :2].sum()) == int(packed[:, :, 5:].sum()) == 0
    out = torch.zeros(5, 2, 6, 64)
    dequantise(packed[:, :, 2:5], 64, out[:, :, 1:4])
    assert torch.equal(out[:, :, 1:4], round_trip(values))


def test_empty() -> None:
    """No vectors, nothing to do."""
    assert packed_of(torch.empty(0, 64)).shape == (0, 36)


@pytest.mark.gpu
def test_cuda_gives_the_same_bytes() -> None:
    """The reference is one function on every device."""
    values = torch.randn(3, 5000).half()
    on_gpu = torch.zeros(3, quantised_bytes(5000), dtype=torch.uint8, device="cuda")
    quantise(values.cuda(), on_gpu)
    codes, constants = split_packed(packed_of(values), 5000)
    gpu_codes, gpu_constants = split_packed(on_gpu.cpu(), 5000)
    torch.testing.assert_close(gpu_constants, constants)
    assert float((gpu_codes == codes).float().mean()) > 0.999
    out = torch.empty(3, 5000, dtype=torch.float16, device="cuda")
    dequantise(on_gpu, 5000, out)
    assert float((out.cpu() - values).abs().max()) < 0.35
