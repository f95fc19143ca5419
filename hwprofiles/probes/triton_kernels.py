"""Two small Triton kernels in several variants, so that as many modules are loaded as in a run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_NUM_VARIANTS = 6
"""The executor has two kernels of attention, and four of quantisation, in a variant or two each."""
_SIZE = 64


def launch(device: torch.device) -> None:
    """Compile, load and run every variant once."""
    source = torch.ones(_SIZE, _SIZE, device=device, dtype=torch.float16)
    target = torch.empty_like(source)
    for variant in range(_NUM_VARIANTS):
        _scale[(_SIZE,)](source, target, source.numel(), FACTOR=variant, BLOCK=_SIZE)
        _multiply[(1,)](source, target, FACTOR=variant, SIZE=_SIZE)


@triton.jit
def _scale(
    source: tl.tensor, target: tl.tensor, count: tl.tensor, FACTOR: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(source + offsets, mask=offsets < count, other=0.0)
    tl.store(target + offsets, values * FACTOR, mask=offsets < count)


@triton.jit
def _multiply(source: tl.tensor, target: tl.tensor, FACTOR: tl.constexpr, SIZE: tl.constexpr) -> None:
    rows = tl.arange(0, SIZE)
    offsets = rows[:, None] * SIZE + rows[None, :]
    tile = tl.load(source + offsets)
    tl.store(target + offsets, (tl.dot(tile, tile) * FACTOR).to(tl.float16))
