"""Models: of few layers on a GPU, whose kernels stay in host memory once a process has called them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from hwprofiles.points import FEW_ROWS, Kernels
from hwprofiles.process_memory import peak_resident_bytes

_SMALL = {
    "vocab_size": 1024,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
_WIDE = {
    "vocab_size": 50272,
    "hidden_size": 4096,
    "word_embed_proj_dim": 4096,
    "ffn_dim": 16384,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
}
"""As OPT-6.7B: the matrix library has other kernels for real widths than for small ones."""
_MODELS: Mapping[Kernels, tuple[str, dict[str, int]]] = {
    "opt": ("opt", _WIDE),
    "rotary": ("llama", _SMALL),
    "experts": ("mixtral", _SMALL),
}
_INPUTS = ((4, 512), (32, 1))
"""Sequences and tokens: of prefill, and as many rows as decode has."""


def kernels_host_bytes(device: torch.device, dtype: torch.dtype) -> dict[Kernels, int]:
    """By how much the process's peak has grown since the call when it has run a model of each kind, in this order.

    A lookup of few rows comes after OPT and is by itself; a mixture of experts calls the same kernels.
    """
    before, grown = peak_resident_bytes(), dict[Kernels, int]()
    _write_cache(device, dtype)
    for kind, (model_type, shape) in _MODELS.items():
        _run(AutoConfig.for_model(model_type, **shape), device, dtype)
        grown[kind] = peak_resident_bytes() - before
        if kind == "opt":
            _look_up(FEW_ROWS, device, dtype)
            grown["few_rows"] = peak_resident_bytes() - before - grown["opt"]
    grown["rotary"] -= grown["few_rows"]
    return grown


def _run(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Each input and its next token, where all weights are the same; decode in a run has an attention of its own."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.to_empty(device=device)
    with torch.inference_mode():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
        for shape in _INPUTS:
            tokens = torch.ones(shape, dtype=torch.long, device=device)
            found = model(input_ids=tokens, use_cache=False, logits_to_keep=1)
            found.logits[:, -1].float().argmax(-1)
    torch.cuda.synchronize(device)


def _write_cache(device: torch.device, dtype: torch.dtype) -> None:
    """As decode that is replayed does: to a place that the device knows."""
    cache, new = (torch.ones(tokens, 8, device=device, dtype=dtype) for tokens in (4, 1))
    cache.index_copy_(0, torch.ones(1, dtype=torch.long, device=device), new)


def _look_up(num_rows: int, device: torch.device, dtype: torch.dtype) -> None:
    table = torch.ones(1024, 1024, device=device, dtype=dtype)
    torch.nn.functional.embedding(torch.ones(num_rows, 1, dtype=torch.long, device=device), table)
    torch.cuda.synchronize(device)
