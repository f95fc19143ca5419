"""The Triton kernels against their references and against the memory they have to move.

    python -m benchmarks.kernels OUT.json [--sweep]

Input is fresh random values; a wrong result ends the run. Times are medians of CUDA events over repeats that go
through several inputs; bytes are those that have to be read and written once. With --sweep the options that the
kernels are compiled with are tried instead.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from triton.runtime.errors import TritonError

from benchmarks.measured import (
    AttentionShape,
    Measured,
    decode_step,
    difference,
    num_inputs,
    packed_random,
    report,
)
from hwprofiles.packing import quantised_bytes
from hwprofiles.probes.compute import hold_back
from hwprofiles.probes.kernels import attention as attention_kernels
from hwprofiles.probes.kernels import quantize as quantize_kernels
from hwprofiles.probes.quantize import dequantise, dequantise_reference, quantise_pair, quantise_reference

REPEATS = 30
_MOST_AHEAD_S = 0.5
"""For which the device waits, while the host asks for calls."""
GPU_SHAPES = (
    AttentionShape(name="opt-30b", rows=48, heads=56, group=1, head_dim=128, tokens=544),
    AttentionShape(name="opt-6.7b", rows=32, heads=32, group=1, head_dim=128, tokens=544),
    AttentionShape(name="opt-1.3b", rows=32, heads=32, group=1, head_dim=64, tokens=544),
    AttentionShape(name="opt-2.7b", rows=32, heads=32, group=1, head_dim=80, tokens=544),
    AttentionShape(name="llama-3-70b", rows=64, heads=8, group=8, head_dim=128, tokens=544),
    AttentionShape(name="llama-3-70b", rows=1, heads=8, group=8, head_dim=128, tokens=8192),
)


class Gpu:
    """Measures calls on the GPU with events."""

    def __init__(self) -> None:
        source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
        target = torch.empty_like(source)
        self.copy_bytes_per_s = 0.0
        seconds, _ = self.time([lambda: target.copy_(source)])
        self.copy_bytes_per_s = 2 * source.nbytes / seconds

    def time(self, calls: Sequence[Callable[[], object]]) -> tuple[float, float]:
        """(median seconds of a call on the device, seconds of issuing one).

        The device is kept waiting until the host has asked for all calls: short ones would be over before the next.
        """
        began = time.perf_counter()
        for call in calls:
            call()
        torch.cuda.synchronize()
        call_s = (time.perf_counter() - began) / len(calls)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
        hold_back(min(_MOST_AHEAD_S, REPEATS * call_s))
        began = time.perf_counter()
        for (start, stop), call in zip(events, itertools.cycle(calls), strict=False):
            start.record()
            call()
            stop.record()
        issued = (time.perf_counter() - began) / REPEATS
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(stop) / 1e3 for start, stop in events), issued

    def measured(
        self, kernel: str, shape: str, num_bytes: int, calls: Sequence[Callable[[], object]], error: float
    ) -> Measured:
        """The row of a kernel that moves `num_bytes` a call."""
        seconds, issued = self.time(calls)
        return Measured(
            kernel=kernel,
            shape=shape,
            milliseconds=seconds * 1e3,
            bytes_per_s=num_bytes / seconds,
            share_of_copy=num_bytes / seconds / self.copy_bytes_per_s,
            host_us=issued * 1e6,
            error=error,
        )


def dequantised_weights(gpu: Gpu, dtype: torch.dtype, rows: int, columns: int) -> Iterator[Measured]:
    """One large matrix: a layer's weights after they crossed the link."""
    n, shape = rows * columns, f"{rows} x {columns} {str(dtype)[6:]}"
    num_bytes = quantised_bytes(n) + n * dtype.itemsize
    inputs = [packed_random((), n, "cuda") for _ in range(num_inputs(num_bytes))]
    out, expected = (torch.empty(n, dtype=dtype, device="cuda") for _ in range(2))
    for name, function in (("dequantise", dequantise), ("  plain torch", dequantise_reference)):
        function(inputs[0], n, out.fill_(99))
        dequantise_reference(inputs[0], n, expected)
        error = difference(out, expected, 0.0, name)
        calls = [lambda packed=packed, function=function: function(packed, n, out) for packed in inputs]
        yield gpu.measured(name, shape, num_bytes, calls, error)


def quantised_pairs(gpu: Gpu, rows: int, heads: int, tokens: int, head_dim: int) -> Iterator[Measured]:
    """New K and V into the packed cache: K as rotary embeddings leave it, V as a projection does."""
    n, shape = heads * head_dim, f"{rows} x {heads} x {tokens} x {head_dim} float16"
    num_bytes = tokens * 2 * rows * (quantised_bytes(n) + n * 2)
    pairs = []
    for _ in range(num_inputs(num_bytes)):
        key = torch.randn(rows, heads, tokens, head_dim, device="cuda", dtype=torch.float16)
        value = torch.randn(rows, tokens, heads, head_dim, device="cuda", dtype=torch.float16).transpose(1, 2)
        pairs.append((key, value))
    packed = torch.full((tokens, 2, rows, quantised_bytes(n)), 99, dtype=torch.uint8, device="cuda")
    expected = torch.empty_like(packed)
    quantise_reference(torch.stack(pairs[0]).permute(3, 0, 1, 2, 4).flatten(3), expected)
    quantise_pair(*pairs[0], packed)
    error = difference(packed, expected, 0.0, "quantise")
    calls = [lambda key=key, value=value: quantise_pair(key, value, packed) for key, value in pairs]
    yield gpu.measured("quantise K and V", shape, num_bytes, calls, error)


def attention(
    gpu: Gpu, shape: AttentionShape, dtype: torch.dtype, *, packed: bool, sweep: bool
) -> Iterator[Measured]:
    """The decode kernel, and with `sweep` other ways to compile it."""
    step = decode_step(shape, dtype, "cuda", packed=packed)
    expected, out = step.expected(dtype), torch.empty_like(step.queries[0])
    name = f"attention {'4-bit' if packed else str(dtype)[6:]}"
    tunings: list[attention_kernels.Tuning | None] = [None]
    if sweep:
        options = itertools.product((32, 64, 128), (2, 4, 8), (2, 3))
        tunings += [
            attention_kernels.Tuning(block_tokens=b, num_warps=w, num_stages=s) for b, w, s in options
        ]
    for tuning in tunings:
        tuned = (
            name if tuning is None else f"  {tuning.block_tokens}, {tuning.num_warps}, {tuning.num_stages}"
        )

        def call(
            query: torch.Tensor, cache: torch.Tensor, tuning: attention_kernels.Tuning | None = tuning
        ) -> None:
            attention_kernels.attend(query, cache, out, step.how, tuning=tuning)

        try:
            out.fill_(torch.nan)
            call(step.queries[0], step.caches[0])
            error = difference(out, expected, 1e-2, tuned)
        except TritonError as failure:  # such as: out of shared memory
            if tuning is None:
                raise
            print(f"{tuned}: {type(failure).__name__}")
            continue
        calls = [partial(call, *pair) for pair in zip(step.queries, step.caches, strict=True)]
        yield gpu.measured(tuned, str(shape), step.caches[0].nbytes, calls, error)


def swept_dequantisation(gpu: Gpu, n: int) -> Iterator[Measured]:
    """The dequantisation of float16 weights with other tiles."""
    packed, out = packed_random((), n, "cuda"), torch.empty(n, dtype=torch.float16, device="cuda")
    for groups in (16, 32, 64, 128, 256):
        call = partial(
            quantize_kernels.dequantise,
            packed[None, None, None],
            n,
            out[None, None, None],
            groups_per_program=groups,
        )
        yield gpu.measured(f"dequantise {groups}", f"{n} float16", packed.nbytes + out.nbytes, [call], 0.0)


def gpu_cases(gpu: Gpu, *, sweep: bool) -> Iterator[Measured]:
    """All figures."""
    if sweep:
        yield from swept_dequantisation(gpu, 7168 * 28672)
    else:
        yield from dequantised_weights(gpu, torch.float16, 7168, 28672)
        yield from dequantised_weights(gpu, torch.bfloat16, 8192, 8192)
        yield from dequantised_weights(gpu, torch.float32, 4096, 4096)
        yield from quantised_pairs(gpu, 16, 56, 512, 128)
        yield from quantised_pairs(gpu, 48, 56, 1, 128)
        yield from quantised_pairs(gpu, 16, 32, 512, 80)
    for shape in (GPU_SHAPES[0], GPU_SHAPES[4]) if sweep else GPU_SHAPES:
        dtype = torch.bfloat16 if shape.name.startswith("llama") else torch.float16
        for packed in (False, True):
            yield from attention(gpu, shape, dtype, packed=packed, sweep=sweep)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="JSON to write")
    parser.add_argument("--sweep", action="store_true", help="try the options the kernels are compiled with")
    options = parser.parse_args()
    with torch.inference_mode():
        gpu = Gpu()
        rows = list(gpu_cases(gpu, sweep=options.sweep))
    command = f"python -m benchmarks.kernels OUT.json{' --sweep' if options.sweep else ''}"
    report(rows, options.output, command, gpu.copy_bytes_per_s)


if __name__ == "__main__":
    main()
