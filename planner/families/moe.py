"""Mixture of experts; source: transformers/models/{mixtral,qwen2_moe,qwen3_moe}.

transformers 5 keeps a layer's routed experts in two tensors: gate_up_proj [E, 2I, H] and down_proj [E, H, I].
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.families.base import Architecture
from planner.families.config import Config
from planner.families.llama import attention, gated_mlp, llama_layer, llama_model, norms
from planner.families.tensors import LayerSpec, Tensors, layer, layers_of, matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class _Experts:
    """A layer's routed experts: how many, how many a token uses, the width of one."""

    num: int
    per_token: int
    width: int


def mixtral(config: Config) -> Architecture:
    """Mixtral: Mistral's attention, experts in every layer."""
    hidden = config.size("hidden_size", 4096)
    heads = config.heads(hidden, num=32, num_kv=8)
    experts = _Experts(
        num=config.size("num_local_experts", 8, "num_experts"),
        per_token=config.size("num_experts_per_tok", 2),
        width=config.size("intermediate_size", 14336),
    )
    block = _moe_layer(
        attention(hidden, heads),
        (*_router(hidden, experts), *_routed(hidden, experts)),
        hidden,
        experts,
        sliding_window=config.optional_size("sliding_window", None),
    )
    layers = (block,) * config.size("num_hidden_layers", 32)
    return llama_model(config, layers, hidden, heads, vocab=32000, positions=4096 * 32)


def qwen2_moe(config: Config) -> Architecture:
    """Qwen 1.5 and 2 MoE: a gated shared expert beside the routed ones."""
    hidden = config.size("hidden_size", 2048)
    heads = config.heads(hidden, num=16, num_kv=16)
    experts = _qwen_experts(config, num=60, per_token=4, width=1408)
    shared = config.size("shared_expert_intermediate_size", 5632)
    wide = config.size("intermediate_size", 5632)
    self_attention = attention(hidden, heads, qkv_bias=config.flag("qkv_bias", True))
    mlp = (
        *_router(hidden, experts),
        *_routed(hidden, experts),
        *gated_mlp("mlp.shared_expert", hidden, shared),
        *matrix("mlp.shared_expert_gate.weight", 1, hidden, quantizable=False),
    )

    def build(kind: tuple[bool, int | None]) -> LayerSpec:
        is_sparse, window = kind
        if not is_sparse:
            return llama_layer(self_attention, hidden, wide, sliding_window=window)
        return _moe_layer(self_attention, mlp, hidden, experts, sliding_window=window, shared_width=shared)

    num_layers = config.size("num_hidden_layers", 24)
    uses_window = config.flag("use_sliding_window", False)
    last = config.count("max_window_layers", 28)
    windows = config.windows(
        config.optional_size("sliding_window", 4096) if uses_window else None,
        (j % 2 == 0 and j < last for j in range(num_layers)),
    )
    layers = layers_of(zip(_sparse(config, num_layers), windows, strict=True), build)
    return llama_model(config, layers, hidden, heads, vocab=151936, positions=32768)


def qwen3_moe(config: Config) -> Architecture:
    """Qwen 3 MoE: Qwen 3's attention, routed experts, one window for all layers."""
    hidden = config.size("hidden_size", 2048)
    heads = config.heads(hidden, num=32, num_kv=4)
    experts = _qwen_experts(config, num=128, per_token=8, width=768)
    bias = config.flag("attention_bias", False)
    wide = config.size("intermediate_size", 6144)
    window = (
        config.optional_size("sliding_window", 4096) if config.flag("use_sliding_window", False) else None
    )
    self_attention = attention(hidden, heads, qkv_bias=bias, o_bias=bias, head_norms=True)
    mlp = _routed(hidden, experts) + _router(hidden, experts)

    def build(is_sparse: bool) -> LayerSpec:
        if not is_sparse:
            return llama_layer(self_attention, hidden, wide, sliding_window=window)
        return _moe_layer(self_attention, mlp, hidden, experts, sliding_window=window)

    layers = layers_of(_sparse(config, config.size("num_hidden_layers", 24)), build)
    return llama_model(config, layers, hidden, heads, vocab=151936, positions=32768)


def _router(hidden: int, experts: _Experts) -> Tensors:
    return matrix("mlp.gate.weight", experts.num, hidden, quantizable=False)


def _routed(hidden: int, experts: _Experts) -> Tensors:
    return (
        *matrix("mlp.experts.gate_up_proj", experts.num, 2 * experts.width, hidden),
        *matrix("mlp.experts.down_proj", experts.num, hidden, experts.width),
    )


def _moe_layer(
    attention_tensors: Tensors,
    mlp: Tensors,
    hidden: int,
    experts: _Experts,
    *,
    sliding_window: int | None,
    shared_width: int = 0,
) -> LayerSpec:
    return layer(
        attention_tensors,
        mlp,
        norms(hidden),
        intermediate_size=max(experts.width, shared_width),
        gated=True,
        sliding_window=sliding_window,
        num_experts=experts.num,
        experts_per_token=experts.per_token,
    )


def _qwen_experts(config: Config, *, num: int, per_token: int, width: int) -> _Experts:
    return _Experts(
        num=config.size("num_experts", num, "num_local_experts"),
        per_token=config.size("num_experts_per_tok", per_token),
        width=config.size("moe_intermediate_size", width),
    )


def _sparse(config: Config, num_layers: int) -> tuple[bool, ...]:
    """Which layers have experts: every decoder_sparse_step-th, but none of mlp_only_layers."""
    dense = config.indices("mlp_only_layers")
    step = config.size("decoder_sparse_step", 1)
    return tuple(j not in dense and (j + 1) % step == 0 for j in range(num_layers))
