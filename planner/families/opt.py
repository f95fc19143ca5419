"""OPT, the 350m variant included; source: transformers/models/opt."""

from __future__ import annotations

from planner.families.base import Architecture
from planner.families.config import Config
from planner.families.tensors import LayerSpec, Tensors, ends, layer, layer_norm, linear, matrix

_POSITION_OFFSET = 2
"""OPT's position table starts at 2."""


def opt(config: Config) -> Architecture:
    """OPT: learned positions, ReLU; 350m norms after the sublayers and embeds in fewer dimensions."""
    hidden = config.size("hidden_size", 768)
    vocab = config.size("vocab_size", 50272)
    positions = config.size("max_position_embeddings", 2048)
    heads = config.size("num_attention_heads", 12)
    tied = config.flag("tie_word_embeddings", True)
    return Architecture(
        layer_prefix="model.decoder.layers",
        layers=(_layer(config, hidden),) * config.size("num_hidden_layers", 12),
        ends=_ends(config, hidden, vocab, positions, tied),
        tied=tied,
        hidden_size=hidden,
        vocab_size=vocab,
        heads=config.checked_heads(hidden, heads, heads),
        max_positions=positions,
    )


def _layer(config: Config, hidden: int) -> LayerSpec:
    bias = config.flag("enable_bias", True)
    wide = config.size("ffn_dim", 3072)
    return layer(
        linear("self_attn.k_proj", hidden, hidden, bias=bias),
        linear("self_attn.v_proj", hidden, hidden, bias=bias),
        linear("self_attn.q_proj", hidden, hidden, bias=bias),
        linear("self_attn.out_proj", hidden, hidden, bias=bias),
        _norm(config, "self_attn_layer_norm", hidden),
        linear("fc1", wide, hidden, bias=bias),
        linear("fc2", hidden, wide, bias=bias),
        _norm(config, "final_layer_norm", hidden),
        intermediate_size=wide,
        gated=False,
    )


def _ends(config: Config, hidden: int, vocab: int, positions: int, tied: bool) -> Tensors:
    width = config.size("word_embed_proj_dim", hidden)
    is_projected = width != hidden
    has_final_norm = config.flag("do_layer_norm_before", True) and not config.flag(
        "_remove_final_layer_norm", False
    )
    prefix = "model.decoder"
    return ends(
        matrix(f"{prefix}.embed_tokens.weight", vocab, width),
        matrix(f"{prefix}.embed_positions.weight", positions + _POSITION_OFFSET, hidden),
        linear(f"{prefix}.project_out", width, hidden) if is_projected else (),
        linear(f"{prefix}.project_in", hidden, width) if is_projected else (),
        _norm(config, f"{prefix}.final_layer_norm", hidden) if has_final_norm else (),
        () if tied else linear("lm_head", vocab, width),
    )


def _norm(config: Config, name: str, width: int) -> Tensors:
    return layer_norm(name, width) if config.flag("layer_norm_elementwise_affine", True) else ()
