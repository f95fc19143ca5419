"""Falcon; source: transformers/models/falcon."""

from __future__ import annotations

from planner.families.base import Architecture
from planner.families.config import Config, Heads
from planner.families.tensors import LayerSpec, Tensors, ends, layer, layer_norm, linear, matrix


def falcon(config: Config) -> Architecture:
    """Falcon: one key and value head, or a few (40B); its attention cannot be replaced."""
    hidden = config.size("n_embed", 4544, "hidden_size")
    vocab = config.size("vocab_size", 65024)
    tied = config.flag("tie_word_embeddings", True)
    num_heads = config.size("num_attention_heads", 71)
    heads = _projected_heads(config, hidden, num_heads)
    return Architecture(
        layer_prefix="transformer.h",
        layers=(_layer(config, hidden, heads),) * config.size("num_hidden_layers", 32),
        ends=ends(
            matrix("transformer.word_embeddings.weight", vocab, hidden),
            layer_norm("transformer.ln_f", hidden),
            () if tied else linear("lm_head", vocab, hidden),
        ),
        tied=tied,
        hidden_size=hidden,
        vocab_size=vocab,
        # grouped heads are repeated before they reach the cache
        heads=config.checked_heads(hidden, num_heads, num_heads) if heads.num_kv > 1 else heads,
        max_positions=None if config.flag("alibi", False) else config.size("max_position_embeddings", 2048),
        cpu_attention=False,
    )


def _projected_heads(config: Config, hidden: int, heads: int) -> Heads:
    """The heads query_key_value makes: one for key and value, some (40B), or all."""
    if config.flag("new_decoder_architecture", False):
        return config.checked_heads(hidden, heads, config.size("num_kv_heads", heads))
    return config.checked_heads(hidden, heads, 1 if config.flag("multi_query", True) else heads)


def _layer(config: Config, hidden: int, heads: Heads) -> LayerSpec:
    bias = config.flag("bias", False)
    wide = config.size("ffn_hidden_size", 4 * hidden)
    return layer(
        linear("self_attention.query_key_value", heads.q_dim + 2 * heads.kv_dim, hidden, bias=bias),
        linear("self_attention.dense", hidden, hidden, bias=bias),
        linear("mlp.dense_h_to_4h", wide, hidden, bias=bias),
        linear("mlp.dense_4h_to_h", hidden, wide, bias=bias),
        _norms(config, hidden),
        intermediate_size=wide,
        gated=False,
    )


def _norms(config: Config, hidden: int) -> Tensors:
    if not config.flag("parallel_attn", True):
        return layer_norm("post_attention_layernorm", hidden) + layer_norm("input_layernorm", hidden)
    num_norms = config.size(
        "num_ln_in_parallel_attn", 2 if config.flag("new_decoder_architecture", False) else 1
    )
    if num_norms == 2:
        return layer_norm("ln_attn", hidden) + layer_norm("ln_mlp", hidden)
    return layer_norm("input_layernorm", hidden)
