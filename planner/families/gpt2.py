"""GPT-2; source: transformers/models/gpt2."""

from __future__ import annotations

from planner.families.base import Architecture
from planner.families.config import Config
from planner.families.tensors import (
    LayerSpec,
    Tensors,
    ends,
    layer,
    layer_norm,
    linear,
    matrix,
    vector,
)


def gpt2(config: Config) -> Architecture:
    """GPT-2: learned positions; its Conv1D keeps a matrix as [in, out]."""
    hidden = config.size("n_embd", 768, "hidden_size")
    vocab = config.size("vocab_size", 50257)
    positions = config.size("n_positions", 1024, "max_position_embeddings")
    heads = config.size("n_head", 12, "num_attention_heads")
    tied = config.flag("tie_word_embeddings", True)
    return Architecture(
        layer_prefix="transformer.h",
        layers=(_layer(config, hidden),) * config.size("n_layer", 12, "num_hidden_layers"),
        ends=ends(
            matrix("transformer.wte.weight", vocab, hidden),
            matrix("transformer.wpe.weight", positions, hidden),
            layer_norm("transformer.ln_f", hidden),
            () if tied else linear("lm_head", vocab, hidden),
        ),
        tied=tied,
        hidden_size=hidden,
        vocab_size=vocab,
        heads=config.checked_heads(hidden, heads, heads),
        max_positions=positions,
    )


def _layer(config: Config, hidden: int) -> LayerSpec:
    wide = config.size("n_inner", 4 * hidden)
    return layer(
        layer_norm("ln_1", hidden),
        _conv1d("attn.c_attn", hidden, 3 * hidden),
        _conv1d("attn.c_proj", hidden, hidden),
        layer_norm("ln_2", hidden),
        _conv1d("mlp.c_fc", hidden, wide),
        _conv1d("mlp.c_proj", wide, hidden),
        intermediate_size=wide,
        gated=False,
    )


def _conv1d(name: str, rows: int, columns: int) -> Tensors:
    """A projection as GPT-2 stores it: weight [rows, columns] = [in, out], bias [out]."""
    return matrix(f"{name}.weight", rows, columns) + vector(f"{name}.bias", columns)
