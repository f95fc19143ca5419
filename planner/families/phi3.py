"""Phi-3; source: transformers/models/phi3."""

from __future__ import annotations

from planner.families.base import Architecture
from planner.families.config import Config
from planner.families.llama import llama_model, norms
from planner.families.tensors import layer, linear


def phi3(config: Config) -> Architecture:
    """Phi-3: Llama with query, key, value in one matrix, and gate and up in one."""
    hidden = config.size("hidden_size", 3072)
    heads = config.heads(hidden, num=32, num_kv=None)
    wide = config.size("intermediate_size", 8192)
    block = layer(
        linear("self_attn.o_proj", hidden, heads.q_dim),
        linear("self_attn.qkv_proj", heads.q_dim + 2 * heads.kv_dim, hidden),
        linear("mlp.gate_up_proj", 2 * wide, hidden),
        linear("mlp.down_proj", hidden, wide),
        norms(hidden),
        intermediate_size=wide,
        gated=True,
        sliding_window=config.optional_size("sliding_window", None),
    )
    layers = (block,) * config.size("num_hidden_layers", 32)
    return llama_model(config, layers, hidden, heads, vocab=32064, positions=4096)
