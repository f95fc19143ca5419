"""BLOOM; source: transformers/models/bloom."""

from __future__ import annotations

from planner.families.base import Architecture
from planner.families.config import Config
from planner.families.tensors import LayerSpec, ends, layer, layer_norm, linear, matrix


def bloom(config: Config) -> Architecture:
    """BLOOM: ALiBi, so no limit of positions; its attention is its own and cannot be replaced."""
    hidden = config.size("n_embed", 64, "hidden_size")
    vocab = config.size("vocab_size", 250880)
    heads = config.size("n_head", 8, "num_attention_heads")
    tied = config.flag("tie_word_embeddings", True)
    return Architecture(
        layer_prefix="transformer.h",
        layers=(_layer(hidden),) * config.size("n_layer", 2, "num_hidden_layers"),
        ends=ends(
            matrix("transformer.word_embeddings.weight", vocab, hidden),
            layer_norm("transformer.word_embeddings_layernorm", hidden),
            layer_norm("transformer.ln_f", hidden),
            () if tied else linear("lm_head", vocab, hidden),
        ),
        tied=tied,
        hidden_size=hidden,
        vocab_size=vocab,
        heads=config.checked_heads(hidden, heads, heads),
        max_positions=None,
        cpu_attention=False,
    )


def _layer(hidden: int) -> LayerSpec:
    return layer(
        layer_norm("input_layernorm", hidden),
        linear("self_attention.query_key_value", 3 * hidden, hidden, bias=True),
        linear("self_attention.dense", hidden, hidden, bias=True),
        layer_norm("post_attention_layernorm", hidden),
        linear("mlp.dense_h_to_4h", 4 * hidden, hidden, bias=True),
        linear("mlp.dense_4h_to_h", hidden, 4 * hidden, bias=True),
        intermediate_size=4 * hidden,
        gated=False,
    )
