"""The CPU's decode attention, compiled and in plain torch: python -m benchmarks.cpu_attention OUT.json --threads 12 16

Input is fresh random values; a wrong result ends the run. Times are the least of repeats that go through several
inputs, because others may use the machine; bytes are those of K and V as they are stored.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.measured import AttentionShape, Measured, decode_step, difference, report
from hwprofiles.probes.cpu_attention import attend_native, attend_plain

SECONDS = 0.3
"""Of repeats for one figure."""
SHAPES = (
    AttentionShape(name="opt-30b", rows=8, heads=56, group=1, head_dim=128, tokens=544),
    AttentionShape(name="opt-1.3b", rows=48, heads=32, group=1, head_dim=64, tokens=544),
    AttentionShape(name="llama-3-70b", rows=48, heads=8, group=8, head_dim=128, tokens=544),
    AttentionShape(name="opt-30b", rows=2, heads=56, group=1, head_dim=128, tokens=4096),
)


def cpu_cases(threads: int) -> Iterator[Measured]:
    """The CPU's attention: compiled, and in plain torch."""
    torch.set_num_threads(threads)
    big = torch.randn(2**27)
    bandwidth = big.nbytes / _cpu_seconds([big.sum])
    for shape, dtype in itertools.product(
        SHAPES, (torch.float16, torch.bfloat16, torch.float32, torch.uint8)
    ):
        packed = dtype == torch.uint8
        stored = torch.float32 if packed else dtype
        step = decode_step(shape, stored, "cpu", packed=packed)
        expected = step.expected(stored)
        for name, function in (("compiled", attend_native), ("plain torch", attend_plain)):
            if packed and function is attend_plain:
                continue
            out = function(step.queries[0], step.caches[0], step.how)
            if out is None:
                continue
            error = difference(out, expected, 2e-2, name)
            calls = [
                lambda query=query, cache=cache, function=function, how=step.how: function(query, cache, how)
                for query, cache in zip(step.queries, step.caches, strict=True)
            ]
            seconds = _cpu_seconds(calls)
            rate = step.caches[0].nbytes / seconds
            yield Measured(
                kernel=f"{'4-bit' if packed else str(dtype)[6:]}, {name}, {threads} threads",
                shape=str(shape),
                milliseconds=seconds * 1e3,
                bytes_per_s=rate,
                share_of_copy=rate / bandwidth,
                host_us=None,
                error=error,
            )


def _cpu_seconds(calls: Sequence[Callable[[], object]]) -> float:
    """The least of some repeats after the first."""
    samples, deadline = [], time.perf_counter() + SECONDS
    for call in itertools.cycle(calls):
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
        if time.perf_counter() > deadline and len(samples) > 2:
            return min(samples[1:])
    raise AssertionError("no calls")


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="JSON to write")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    options = parser.parse_args()
    with torch.inference_mode():
        rows = [row for threads in options.threads for row in cpu_cases(threads)]
    command = f"python -m benchmarks.cpu_attention OUT.json --threads {' '.join(map(str, options.threads))}"
    report(rows, options.output, command)


if __name__ == "__main__":
    main()
