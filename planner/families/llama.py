"""Llama and the dense families of its kind; source: transformers/models/{llama,mistral,qwen2,qwen3}."""

from __future__ import annotations

from planner.families.base import Architecture
from planner.families.config import Config, Heads
from planner.families.tensors import (
    LayerSpec,
    Tensors,
    ends,
    layer,
    layers_of,
    linear,
    matrix,
    rms_norm,
)


def llama(config: Config) -> Architecture:
    """Llama 1 to 3.x: rotary positions, grouped queries, gated MLP."""
    hidden = config.size("hidden_size", 4096)
    heads = config.heads(hidden, num=32, num_kv=None)
    bias = config.flag("attention_bias", False)
    block = llama_layer(
        attention(hidden, heads, qkv_bias=bias, o_bias=bias),
        hidden,
        config.size("intermediate_size", 11008),
        mlp_bias=config.flag("mlp_bias", False),
    )
    layers = (block,) * config.size("num_hidden_layers", 32)
    return llama_model(config, layers, hidden, heads, vocab=32000, positions=2048)


def mistral(config: Config) -> Architecture:
    """Mistral: Llama with a sliding window in every layer, unless the config says null."""
    hidden = config.size("hidden_size", 4096)
    heads = config.heads(hidden, num=32, num_kv=8)
    block = llama_layer(
        attention(hidden, heads),
        hidden,
        config.size("intermediate_size", 14336),
        sliding_window=config.optional_size("sliding_window", 4096),
    )
    layers = (block,) * config.size("num_hidden_layers", 32)
    return llama_model(config, layers, hidden, heads, vocab=32000, positions=4096 * 32)


def qwen2(config: Config) -> Architecture:
    """Qwen 2 and 2.5: Llama with biases on query, key and value."""
    hidden = config.size("hidden_size", 4096)
    heads = config.heads(hidden, num=32, num_kv=32)
    return _qwen(config, attention(hidden, heads, qkv_bias=True), hidden, heads)


def qwen3(config: Config) -> Architecture:
    """Qwen 3: norms on each head of query and key instead of biases."""
    hidden = config.size("hidden_size", 4096)
    heads = config.heads(hidden, num=32, num_kv=32, head_dim=128)
    bias = config.flag("attention_bias", False)
    tensors = attention(hidden, heads, qkv_bias=bias, o_bias=bias, head_norms=True)
    return _qwen(config, tensors, hidden, heads)


def attention(
    hidden: int, heads: Heads, *, qkv_bias: bool = False, o_bias: bool = False, head_norms: bool = False
) -> Tensors:
    """The four projections of self-attention and, in Qwen 3, its norms of one head's width."""
    return (
        *linear("self_attn.q_proj", heads.q_dim, hidden, bias=qkv_bias),
        *linear("self_attn.k_proj", heads.kv_dim, hidden, bias=qkv_bias),
        *linear("self_attn.v_proj", heads.kv_dim, hidden, bias=qkv_bias),
        *linear("self_attn.o_proj", hidden, heads.q_dim, bias=o_bias),
        *(rms_norm("self_attn.q_norm", heads.dim) if head_norms else ()),
        *(rms_norm("self_attn.k_norm", heads.dim) if head_norms else ()),
    )


def gated_mlp(name: str, hidden: int, wide: int, *, bias: bool = False) -> Tensors:
    """Gate and up [wide, hidden], down [hidden, wide]."""
    return (
        *linear(f"{name}.gate_proj", wide, hidden, bias=bias),
        *linear(f"{name}.up_proj", wide, hidden, bias=bias),
        *linear(f"{name}.down_proj", hidden, wide, bias=bias),
    )


def norms(hidden: int) -> Tensors:
    """The norms before attention and before the MLP."""
    return rms_norm("input_layernorm", hidden) + rms_norm("post_attention_layernorm", hidden)


def llama_layer(
    attention_tensors: Tensors,
    hidden: int,
    wide: int,
    *,
    mlp_bias: bool = False,
    sliding_window: int | None = None,
) -> LayerSpec:
    """A dense layer: attention, gated MLP, two norms."""
    return layer(
        attention_tensors,
        gated_mlp("mlp", hidden, wide, bias=mlp_bias),
        norms(hidden),
        intermediate_size=wide,
        gated=True,
        sliding_window=sliding_window,
    )


def llama_model(
    config: Config,
    layers: tuple[LayerSpec, ...],
    hidden: int,
    heads: Heads,
    *,
    vocab: int,
    positions: int,
    tied: bool = False,
) -> Architecture:
    """The model around the layers: embedding, final norm, head; `vocab`, `positions`, `tied` are defaults."""
    vocab = config.size("vocab_size", vocab)
    tied = config.flag("tie_word_embeddings", tied)
    return Architecture(
        layer_prefix="model.layers",
        layers=layers,
        ends=ends(
            matrix("model.embed_tokens.weight", vocab, hidden),
            rms_norm("model.norm", hidden),
            () if tied else linear("lm_head", vocab, hidden),
        ),
        tied=tied,
        hidden_size=hidden,
        vocab_size=vocab,
        heads=heads,
        max_positions=config.size("max_position_embeddings", positions),
    )


def _qwen(config: Config, tensors: Tensors, hidden: int, heads: Heads) -> Architecture:
    wide = config.size("intermediate_size", 22016)
    windows = _qwen_windows(config, config.size("num_hidden_layers", 32))
    layers = layers_of(windows, lambda window: llama_layer(tensors, hidden, wide, sliding_window=window))
    return llama_model(config, layers, hidden, heads, vocab=151936, positions=32768)


def _qwen_windows(config: Config, num_layers: int) -> tuple[int | None, ...]:
    """Where Qwen slides: nowhere, unless use_sliding_window; then from max_window_layers on."""
    uses_window = config.flag("use_sliding_window", False)
    window = config.optional_size("sliding_window", 4096) if uses_window else None
    first = config.count("max_window_layers", 28)
    return config.windows(window, (j >= first for j in range(num_layers)))
