"""Models: small ones on a GPU, whose kernels stay in host memory once a process has called them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from hwprofiles.points import Kernels
from hwprofiles.process_memory import peak_resident_bytes

_MODEL_TYPES: Mapping[Kernels, str] = {"rotary": "llama", "experts": "mixtral"}
_SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
_PROMPT = (4, 512)
"""Sequences and tokens."""


def kernels_host_bytes(device: torch.device, dtype: torch.dtype) -> dict[Kernels, int]:
    """By how much the process's peak has grown since the call when it has run a model of each kind, in this order."""
    before, grown = peak_resident_bytes(), dict[Kernels, int]()
    for kind, model_type in _MODEL_TYPES.items():
        _run_prompt(AutoConfig.for_model(model_type, **_SHAPE), device, dtype)
        grown[kind] = peak_resident_bytes() - before
    return grown


def _run_prompt(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> None:
    """A prompt and its next token, where all weights are the same; decode in a run has an attention of its own."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.to_empty(device=device)
    with torch.inference_mode():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
        found = model(input_ids=torch.ones(_PROMPT, dtype=torch.long, device=device), use_cache=False)
        found.logits[:, -1].float().argmax(-1)
    torch.cuda.synchronize(device)
