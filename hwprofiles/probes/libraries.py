"""Libraries: GPU kernels that a run uses, each called once, as they are loaded into the context when first called."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hwprofiles.packing import quantised_bytes
from hwprofiles.probes.cpu_attention import Decode
from hwprofiles.probes.kernels import AMPERE, usable
from hwprofiles.probes.quantize import dequantise, quantise_pair

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_ROWS = (1, 8, 64, 512, 4096)
_SHAPES = ((1024, 1024), (4096, 1024), (1024, 4096))


def library_bytes(device: torch.device) -> int:
    """By how much what CUDA keeps beside torch grows while a run's kernels are loaded."""
    before = _beside_torch(device)
    load_kernels(device)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return max(0, _beside_torch(device) - before)


def load_kernels(device: torch.device, rows: Sequence[int] = _ROWS) -> None:
    """Call what layers, sampling and quantisation call, in every dtype; Triton too where it is usable."""
    with torch.inference_mode():
        for dtype in _DTYPES:
            _multiply(device, dtype, rows)
            _attend(device, dtype)
            _transform(device, dtype)
            load_packed(device, dtype)


def load_packed(device: torch.device, dtype: torch.dtype) -> None:
    """Call packing, unpacking, and attention to what is packed and what is not; Triton's kernels where it is usable."""
    with suppress(Exception):  # where Triton cannot compile, no run loads a kernel of its
        _pack(device, dtype)


def _multiply(device: torch.device, dtype: torch.dtype, counts: Sequence[int]) -> None:
    """Linear layers of several shapes: the matrix library chooses another kernel for each."""
    for columns, width in _SHAPES:
        weight = torch.ones(columns, width, device=device, dtype=dtype)
        bias = torch.ones(columns, device=device, dtype=dtype)
        for rows in counts:
            x = torch.ones(rows, width, device=device, dtype=dtype)
            functional.linear(x, weight)
            functional.linear(x, weight, bias)
    heads = torch.ones(8, 64, 128, device=device, dtype=dtype)
    torch.bmm(heads, heads.transpose(1, 2))


def _attend(device: torch.device, dtype: torch.dtype) -> None:
    """Every implementation that takes the dtype, for a prompt and for one token, with and without a mask."""
    for head_dim in (64, 128):
        heads = torch.ones(2, 4, 128, head_dim, device=device, dtype=dtype)
        mask = torch.zeros(2, 4, 128, 128, device=device, dtype=dtype)
        fused = (SDPBackend.FLASH_ATTENTION,) if dtype != torch.float32 else ()
        for backend in (*fused, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
            with sdpa_kernel(backend), suppress(RuntimeError):  # older GPUs lack some of them
                functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
                functional.scaled_dot_product_attention(heads[:, :, :1], heads, heads)
                if backend != SDPBackend.FLASH_ATTENTION:
                    functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)


def _transform(device: torch.device, dtype: torch.dtype) -> None:
    """Norms, activation functions, rotary embedding, lookups and choosing tokens."""
    x = torch.ones(64, 1024, device=device, dtype=dtype)
    scale = torch.ones(1024, device=device, dtype=dtype)
    functional.layer_norm(x, (1024,), scale, scale)
    (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True))).to(dtype)
    for activate in (functional.relu, functional.gelu, functional.silu, torch.tanh, torch.sigmoid):
        activate(x)
    left, right = x.chunk(2, dim=-1)
    torch.cat((-right, left), dim=-1) * x.cos() + x * x.sin()
    tokens = torch.arange(64, device=device)
    functional.embedding(tokens, x)
    x.index_select(0, tokens).contiguous().add_(x)
    x.float().softmax(-1).argmax(-1)
    torch.topk(x.float(), 8)
    torch.multinomial(x.float().softmax(-1), 1)
    x.float().sort(descending=True)[0].cumsum(-1)


def _pack(device: torch.device, dtype: torch.dtype) -> None:
    for head_dim in (64, 128):
        heads = torch.ones(2, 4, 64, head_dim, device=device, dtype=dtype)
        packed = torch.empty(64, 2, 2, quantised_bytes(4 * head_dim), device=device, dtype=torch.uint8)
        quantise_pair(heads, heads, packed)
        dequantise(packed, 4 * head_dim, torch.empty(64, 2, 2, 4 * head_dim, device=device, dtype=dtype))
        if usable(device, AMPERE):
            from hwprofiles.probes.kernels.attention import attend  # noqa: PLC0415 - needs Triton

            query, how = heads[:, :, :1], Decode(num_heads=4, start=0, pads=None, scale=1.0, softcap=None)
            for tokens in (packed, torch.ones(64, 2, 2, 4 * head_dim, device=device, dtype=dtype)):
                attend(query, tokens, torch.empty_like(query), how)


def _beside_torch(device: torch.device) -> int:
    """What is taken of the GPU beside what torch has reserved."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)
