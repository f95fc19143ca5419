"""What the benchmarks of single functions share: their input, their check, their table and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.json_result import write_json_result
from benchmarks.setting import Setting, setting_of
from hwprofiles.packing import GROUP_SIZE, quantised_bytes
from hwprofiles.probes.cpu_attention import Decode, attend_plain
from hwprofiles.probes.quantize import dequantise_reference, quantise_reference

COLD_BYTES = 256 * 2**20
"""Inputs of a measurement together: several times a processor's last-level cache."""
MAX_INPUTS = 30
COLUMNS = ("kernel", "shape", "ms", "GB/s", "of copy", "host us", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One kernel on one shape."""

    kernel: str
    shape: str
    milliseconds: float
    bytes_per_s: float
    share_of_copy: float
    """Of the bandwidth that a large copy (GPU) or a large sum (CPU) reaches."""
    host_us: float | None
    """What a call costs the thread that makes it; None where the call waits."""
    error: float
    """Largest difference from the reference over the largest value of the reference."""

    def cells(self) -> tuple[str, ...]:
        """In the order of COLUMNS."""
        return (
            self.kernel,
            self.shape,
            f"{self.milliseconds:.3f}",
            f"{self.bytes_per_s / 1e9:.1f}",
            f"{self.share_of_copy:.0%}",
            "" if self.host_us is None else f"{self.host_us:.0f}",
            f"{self.error:.0e}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Functions:
    """All of one run. The contract of benchmarks/results/functions/kernels*.json and cpu-attention*.json."""

    setting: Setting
    copy_bytes_per_s: float | None
    """Of a GPU: read and written by a large copy."""
    measured: Sequence[Measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """A decode step's attention in one layer."""

    name: str
    rows: int
    heads: int
    group: int
    head_dim: int
    tokens: int

    def __str__(self) -> str:
        return (
            f"{self.name} {self.rows} x {self.tokens}, {self.heads} heads x {self.group} of {self.head_dim}"
        )


def difference(got: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> float:
    """The largest difference relative to the largest expected value; raises where it is above the tolerance."""
    got, expected = got.float(), expected.float()
    error = float((got - expected).abs().max() / expected.abs().max())
    if not error <= tolerance:
        raise SystemExit(f"{what}: off by {error:.1e}, allowed {tolerance:.1e}")
    return error


def num_inputs(num_bytes: int) -> int:
    """How many inputs of this size are not all in a cache."""
    return max(1, min(MAX_INPUTS, -(-COLD_BYTES // num_bytes)))


def packed_random(shape: tuple[int, ...], n: int, device: str) -> torch.Tensor:
    """Packed vectors whose constants are finite."""
    values = torch.randn(1024, n if n < 2**20 else 64 * 1024, device=device)
    sample = torch.empty(1024, quantised_bytes(values.shape[1]), dtype=torch.uint8, device=device)
    quantise_reference(values, sample)
    groups = -(-n // GROUP_SIZE)
    packed = torch.empty(*shape, quantised_bytes(n), dtype=torch.uint8, device=device)
    codes, constants = packed[..., : groups * 32], packed[..., groups * 32 :]
    codes.random_()
    found = sample[:, values.shape[1] // 64 * 32 :].flatten()
    repeated = found[: found.numel() // 4 * 4].repeat(-(-constants.numel() // found.numel()))
    constants.copy_(repeated[: constants.numel()].view(constants.shape))
    return packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Input of a decode step's attention, and how its vectors are unpacked."""

    queries: list[torch.Tensor]
    caches: list[torch.Tensor]
    how: Decode

    def expected(self, dtype: torch.dtype) -> torch.Tensor:
        """The first input's result in float32, K and V dequantised to `dtype`."""
        cache, query = self.caches[0], self.queries[0]
        n = self.how.num_heads * query.shape[3]
        values = cache
        if cache.dtype == torch.uint8:
            values = torch.empty(*cache.shape[:3], n, dtype=dtype, device=cache.device)
            dequantise_reference(cache, n, values)
        parts = [
            attend_plain(query[row : row + 1].float(), values[:, :, row : row + 1].float(), self.how)
            for row in range(query.shape[0])
        ]
        return torch.cat(parts)


def decode_step(shape: AttentionShape, dtype: torch.dtype, device: str, *, packed: bool) -> Step:
    """Random queries and caches, enough of them not to be cached by the hardware."""
    n = shape.heads * shape.head_dim
    vectors = (shape.tokens, 2, shape.rows)
    num_bytes = 2 * shape.tokens * shape.rows * (quantised_bytes(n) if packed else n * dtype.itemsize)
    count = num_inputs(num_bytes)
    return Step(
        queries=[
            torch.randn(shape.rows, shape.heads * shape.group, 1, shape.head_dim, device=device).to(dtype)
            for _ in range(count)
        ],
        caches=[
            packed_random(vectors, n, device) if packed else torch.randn(*vectors, n, device=device).to(dtype)
            for _ in range(count)
        ],
        how=Decode(num_heads=shape.heads, start=0, pads=None, scale=shape.head_dim**-0.5, softcap=None),
    )


def report(
    rows: Sequence[Measured], output: Path, command: str, copy_bytes_per_s: float | None = None
) -> None:
    """Print the table and write the JSON."""
    found = Functions(setting=setting_of(None, command), copy_bytes_per_s=copy_bytes_per_s, measured=rows)
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row.cells())
    Console(width=160).print(table)
    write_json_result(found, output)
