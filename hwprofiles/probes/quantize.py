"""4-bit group-wise quantisation, asymmetric: kernels where they run, and plain torch that they are held against.

A vector of n values is cut into groups of 64, the last one filled up with its last value. Its bytes are first
all packed groups, 32 bytes each (byte b holds value b in its low nibble and value b + 32 in its high one),
then scale and minimum of each group as float16. Source: FlexGen, section 4.2 (arXiv 2303.06865).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from hwprofiles.packing import GROUP_SIZE, quantised_bytes
from hwprofiles.probes.kernels import usable

_HALF = GROUP_SIZE // 2
_LEVELS = 15
_FLOAT16_MAX = 65504.0
_CPU_SLICE = 2**17
"""Values at a time: float32 temporaries that stay in the processor's cache."""
_DEVICE_SLICE = 2**21
_KERNEL_DIMS = 4
"""Vectors in three dimensions."""
_NOT_FINITE = "a value to quantise is not finite"

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def quantise(values: torch.Tensor, out: torch.Tensor, *, check_finite: bool = False) -> None:
    """Quantise values [..., n], each vector by itself, into out [..., quantised_bytes(n)] of uint8.

    A group with an infinity or a NaN becomes NaN; with `check_finite` it raises ValueError.
    """
    if usable(out.device) and _is_simple(values, out):
        from hwprofiles.probes.kernels import quantize as kernels  # noqa: PLC0415 - needs Triton

        kernels.quantise(_three_dims(values), _three_dims(out))
        if check_finite and bool(split_packed(out, values.shape[-1])[1].isnan().any()):
            raise ValueError(_NOT_FINITE)
        return
    quantise_reference(values, out, check_finite=check_finite)


def quantise_pair(key: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> None:
    """Quantise K and V [rows, heads, tokens, head_dim] into out [tokens, 2, rows, bytes], a token's heads together."""
    if usable(out.device) and key.stride(3) == value.stride(3) == 1:
        from hwprofiles.probes.kernels import quantize as kernels  # noqa: PLC0415 - needs Triton

        kernels.quantise_pair(key, value, out)
        return
    both = torch.stack((key, value)).permute(3, 0, 1, 2, 4)
    packed = torch.empty(out.shape, dtype=torch.uint8, device=out.device)
    quantise_reference(both.flatten(3), packed)
    out.copy_(packed)


def dequantise(packed: torch.Tensor, n: int, out: torch.Tensor) -> None:
    """The values [..., n] of packed [..., quantised_bytes(n)], in the dtype of `out`."""
    if usable(out.device) and _is_simple(out, packed):
        from hwprofiles.probes.kernels import quantize as kernels  # noqa: PLC0415 - needs Triton

        kernels.dequantise(_three_dims(packed), n, _three_dims(out))
        return
    dequantise_reference(packed, n, out)


class Dequantise:
    """`dequantise` of the same vectors again and again, packed [bytes] to out [n], in one launch if it can.

    A launch takes longer to ask for than a small vector to do.
    """

    def __init__(self, vectors: Sequence[tuple[torch.Tensor, int, torch.Tensor]]) -> None:
        """(packed, n, out) of each; they start where alignment to 16 bytes is kept, and stay where they are."""
        self._vectors = vectors
        self._at_once: Callable[[], None] | None = None
        if vectors and usable(vectors[0][2].device):
            from hwprofiles.probes.kernels import quantize as kernels  # noqa: PLC0415 - needs Triton

            self._at_once = kernels.DequantiseAll(vectors)

    def __call__(self) -> None:
        """Do it."""
        if self._at_once is not None:
            self._at_once()
            return
        for packed, n, out in self._vectors:
            dequantise_reference(packed, n, out)


def _is_simple(values: torch.Tensor, packed: torch.Tensor) -> bool:
    """Whether kernels can take these."""
    return values.dim() <= _KERNEL_DIMS and values.stride(-1) == packed.stride(-1) == 1


def _three_dims(vectors: torch.Tensor) -> torch.Tensor:
    """[a, b, c, ...] with leading dimensions of one where there are fewer."""
    return vectors[(None,) * (_KERNEL_DIMS - vectors.dim())]


def quantise_reference(values: torch.Tensor, out: torch.Tensor, *, check_finite: bool = False) -> None:
    """`quantise` in plain torch."""
    packed, constants = split_packed(out, values.shape[-1])
    quantise_groups(values, packed, constants, check_finite=check_finite)


def dequantise_reference(packed: torch.Tensor, n: int, out: torch.Tensor) -> None:
    """`dequantise` in plain torch."""
    codes, constants = split_packed(packed, n)
    whole = n - n % GROUP_SIZE
    num_whole = whole // GROUP_SIZE
    pieces = _slices(_grouped(out[..., :whole]), codes[..., :num_whole, :], constants[..., :num_whole, :])
    for groups, code, constant in pieces:
        _dequantise_slice(code, constant, groups)
    if whole < n:
        last = torch.empty((*out.shape[:-1], 1, GROUP_SIZE), dtype=out.dtype, device=out.device)
        _dequantise_slice(codes[..., num_whole:, :], constants[..., num_whole:, :], last)
        out[..., whole:] = last[..., 0, : n - whole]


def split_packed(packed: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of packed [..., quantised_bytes(n)]: uint8 [..., groups, 32], float16 [..., groups, 2]."""
    assert packed.dtype == torch.uint8, packed.dtype
    assert packed.shape[-1] == quantised_bytes(n), (packed.shape, n)
    num_groups = -(-n // GROUP_SIZE)
    codes = packed[..., : num_groups * _HALF].unflatten(-1, (num_groups, _HALF))
    constants = packed[..., num_groups * _HALF :].view(torch.float16).unflatten(-1, (num_groups, 2))
    return codes, constants


def quantise_groups(
    values: torch.Tensor, packed: torch.Tensor, constants: torch.Tensor, *, check_finite: bool
) -> None:
    """Quantise values [..., n] into packed [..., groups, 32] and constants [..., groups, 2], wherever."""
    n = values.shape[-1]
    whole = n - n % GROUP_SIZE
    num_whole = whole // GROUP_SIZE
    pieces = _slices(_grouped(values[..., :whole]), packed[..., :num_whole, :], constants[..., :num_whole, :])
    for groups, code, constant in pieces:
        _quantise_slice(groups, code, constant, check_finite)
    if whole < n:
        filler = values[..., -1:].expand(*values.shape[:-1], GROUP_SIZE - (n - whole))
        last = torch.cat((values[..., whole:], filler), dim=-1).unsqueeze(-2)
        _quantise_slice(last, packed[..., num_whole:, :], constants[..., num_whole:, :], check_finite)


def _quantise_slice(
    groups: torch.Tensor, packed: torch.Tensor, constants: torch.Tensor, check_finite: bool
) -> None:
    values = groups.to(torch.float32)  # [..., groups, 64]
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    if check_finite and not bool((low.isfinite() & high.isfinite()).all()):
        raise ValueError(_NOT_FINITE)
    finite = low.isfinite() & high.isfinite()
    low, high = torch.where(finite, low, 0.0) + 0.0, high + 0.0  # no negative zero
    scale = (high * 0.5 - low * 0.5) * (2 / _LEVELS)  # not (high - low), which may overflow
    constants[..., :1] = torch.where(finite, scale.clamp(max=_FLOAT16_MAX), torch.nan)
    constants[..., 1:] = low.clamp(-_FLOAT16_MAX, _FLOAT16_MAX)
    scale, low = constants[..., :1].to(torch.float32), constants[..., 1:].to(torch.float32)
    varies = finite & (scale != 0)
    steps = torch.where(varies, scale.reciprocal(), 0.0)
    codes = (values - low).mul_(steps).clamp_(0, _LEVELS).round_()
    if codes.device.type != "cpu" or not bool(finite.all()):
        codes.nan_to_num_(0.0)
    packed.copy_(torch.add(codes[..., :_HALF], codes[..., _HALF:], alpha=_LEVELS + 1))  # exact up to 255


def _dequantise_slice(packed: torch.Tensor, constants: torch.Tensor, groups: torch.Tensor) -> None:
    scale, low = constants[..., :1].to(torch.float32), constants[..., 1:].to(torch.float32)
    groups[..., :_HALF] = (packed & _LEVELS).to(torch.float32).mul_(scale).add_(low)
    groups[..., _HALF:] = (packed >> 4).to(torch.float32).mul_(scale).add_(low)


def _grouped(values: torch.Tensor) -> torch.Tensor:
    """[..., n] as [..., groups, 64]; a view."""
    grouped: torch.Tensor = values.unflatten(-1, (values.shape[-1] // GROUP_SIZE, GROUP_SIZE))
    return grouped


def _slices(groups: torch.Tensor, packed: torch.Tensor, constants: torch.Tensor) -> Iterator[Parts]:
    """Matching pieces of the three along their common dimensions, small enough to bound the temporaries."""
    limit = _CPU_SLICE if groups.device.type == "cpu" else _DEVICE_SLICE
    if groups.numel() == 0:
        return
    if groups.numel() <= limit:
        yield groups, packed, constants
        return
    shape = groups.shape[:-1]
    dim = max(range(len(shape)), key=lambda d: shape[d])
    step = max(1, shape[dim] * limit // groups.numel())
    for parts in zip(*(tensor.split(step, dim) for tensor in (groups, packed, constants)), strict=True):
        yield from _slices(*parts)
