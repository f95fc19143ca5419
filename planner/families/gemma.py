"""Gemma 1 and 2; source: transformers/models/{gemma,gemma2}."""

from __future__ import annotations

from planner.families.base import Architecture
from planner.families.config import Config
from planner.families.llama import attention, gated_mlp, llama_layer, llama_model, norms
from planner.families.tensors import LayerSpec, layer, layers_of, rms_norm


def gemma(config: Config) -> Architecture:
    """Gemma 1: Llama's tensors, with heads wider than hidden / heads, and tied embeddings."""
    hidden = config.size("hidden_size", 3072)
    heads = config.heads(hidden, num=16, num_kv=16, head_dim=256)
    bias = config.flag("attention_bias", False)
    block = llama_layer(
        attention(hidden, heads, qkv_bias=bias, o_bias=bias), hidden, config.size("intermediate_size", 24576)
    )
    layers = (block,) * config.size("num_hidden_layers", 28)
    return llama_model(config, layers, hidden, heads, vocab=256000, positions=8192, tied=True)


def gemma2(config: Config) -> Architecture:
    """Gemma 2: norms before and after both sublayers, a sliding window in every other layer."""
    hidden = config.size("hidden_size", 2304)
    heads = config.heads(hidden, num=8, num_kv=4, head_dim=256)
    bias = config.flag("attention_bias", False)
    wide = config.size("intermediate_size", 9216)

    def build(window: int | None) -> LayerSpec:
        return layer(
            attention(hidden, heads, qkv_bias=bias, o_bias=bias),
            gated_mlp("mlp", hidden, wide),
            norms(hidden),
            rms_norm("pre_feedforward_layernorm", hidden),
            rms_norm("post_feedforward_layernorm", hidden),
            intermediate_size=wide,
            gated=True,
            sliding_window=window,
        )

    num_layers = config.size("num_hidden_layers", 26)
    windows = config.windows(
        config.optional_size("sliding_window", 4096), (j % 2 == 0 for j in range(num_layers))
    )
    layers = layers_of(windows, build)
    return llama_model(config, layers, hidden, heads, vocab=256000, positions=8192, tied=True)
