"""Experts: a prompt's tokens go through the experts they are routed to, one expert after another."""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from executor.arena import Arena, write_by_kernel
from planner.layout import is_large_product

EXPERTS_NAME = "tierplan"
"""As registered with transformers."""
_GROUPED = "grouped_mm"
_ROWS = 64
"""Products have a multiple of these."""


class _Experts(Protocol):
    """What is used of transformers' modules: all experts' weights, each in one tensor."""

    num_experts: int
    has_gate: bool
    has_bias: bool
    is_transposed: bool
    gate_up_proj: torch.Tensor
    """[experts, 2 x intermediate, hidden]"""
    down_proj: torch.Tensor
    """[experts, hidden, intermediate]"""

    def _apply_gate(self, gate_up_out: torch.Tensor) -> torch.Tensor: ...


def register_experts(model: nn.Module) -> None:
    """Let the model's experts be computed here, where transformers would take its grouped products."""
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, _experts)
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig) and config._experts_implementation == _GROUPED:
            config._experts_implementation = EXPERTS_NAME


def _experts(
    module: _Experts, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """[tokens, hidden] of `hidden` like it; `index` and `weights` [tokens, experts per token] are the router's.

    torch's grouped product takes any number of tokens without waiting for the router. With 1024 tokens an expert it is
    slower than dense products: on an H200 prefill of Mixtral-8x7B took 1.4 times what these would by the profile.
    """
    is_plain = module.has_gate and not (module.has_bias or module.is_transposed)
    if is_plain and hidden.device.type == "cuda":
        rows = index.numel() / module.num_experts
        if is_large_product(rows, module.gate_up_proj[0].numel()):
            return by_expert(module, hidden, index, weights)
    result: torch.Tensor = ALL_EXPERTS_FUNCTIONS[_GROUPED](module, hidden, index, weights)
    return result


def by_expert(
    module: _Experts, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The same with dense products; it waits for the router, once.

    Products reach into the next experts' tokens, so that few numbers of rows occur: for each new one the libraries
    look for a kernel, and load it. What is not the expert's own is dropped.
    """
    per_token, chosen = index.shape[1], index.reshape(-1)
    order, first = torch.argsort(chosen, stable=True), 0
    sources = order // per_token
    results = hidden.new_empty(chosen.numel(), hidden.shape[1])
    for expert, count in enumerate(_counts(chosen, module.num_experts)):
        if count:
            rows = min(-(-count // _ROWS) * _ROWS, hidden.shape[0])
            begin = min(first, chosen.numel() - rows)
            tokens = hidden[sources[begin : begin + rows]]
            inner = module._apply_gate(functional.linear(tokens, module.gate_up_proj[expert]))
            output = functional.linear(inner, module.down_proj[expert])
            results[order[first : first + count]] = output[first - begin : first - begin + count]
        first += count
    weighted = results.view(-1, per_token, hidden.shape[1]) * weights.unsqueeze(-1)
    return weighted.sum(dim=1).to(hidden.dtype)


def _counts(chosen: torch.Tensor, num_experts: int) -> list[int]:
    """How often each expert is chosen."""
    experts = torch.arange(num_experts, device=chosen.device)
    counts = (chosen[:, None] == experts).sum(dim=0)
    if chosen.device.type != "cuda":
        return counts.tolist()
    here, there = _shared(chosen.device, num_experts)
    write_by_kernel(counts, there)
    written = torch.cuda.Event()
    written.record()
    written.synchronize()
    return here.tolist()


@cache
def _shared(device: torch.device, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[count] int64 on the host, and the same as the kernels of the current GPU see it; kept as long as the process."""
    arena = Arena(count * torch.int64.itemsize, torch.device("cpu"), register=device.type == "cuda")
    return arena.tensor.view(torch.int64), arena.as_kernels_see_it().view(torch.int64)
