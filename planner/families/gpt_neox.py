"""GPT-NeoX and Pythia; source: transformers/models/gpt_neox."""

from __future__ import annotations

from planner.families.base import Architecture
from planner.families.config import Config
from planner.families.tensors import LayerSpec, ends, layer, layer_norm, linear, matrix


def gpt_neox(config: Config) -> Architecture:
    """GPT-NeoX: attention and MLP side by side, query, key and value in one matrix."""
    hidden = config.size("hidden_size", 6144)
    vocab = config.size("vocab_size", 50432)
    heads = config.size("num_attention_heads", 64)
    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        layer_prefix="gpt_neox.layers",
        layers=(_layer(config, hidden),) * config.size("num_hidden_layers", 44),
        ends=ends(
            matrix("gpt_neox.embed_in.weight", vocab, hidden),
            layer_norm("gpt_neox.final_layer_norm", hidden),
            () if tied else linear("lm_head", vocab, hidden),
        ),
        tied=tied,
        hidden_size=hidden,
        vocab_size=vocab,
        heads=config.checked_heads(hidden, heads, heads),
        max_positions=config.size("max_position_embeddings", 2048),
    )


def _layer(config: Config, hidden: int) -> LayerSpec:
    bias = config.flag("attention_bias", True)
    wide = config.size("intermediate_size", 24576)
    return layer(
        layer_norm("input_layernorm", hidden),
        layer_norm("post_attention_layernorm", hidden),
        linear("attention.query_key_value", 3 * hidden, hidden, bias=bias),
        linear("attention.dense", hidden, hidden, bias=bias),
        linear("mlp.dense_h_to_4h", wide, hidden, bias=True),
        linear("mlp.dense_4h_to_h", hidden, wide, bias=True),
        intermediate_size=wide,
        gated=False,
    )
