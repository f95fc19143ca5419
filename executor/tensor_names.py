"""From a parameter's name in transformers 5 to the keys it may have in a checkpoint.

Checkpoints of a base model lack the prefix ("transformer.", "model."), GPT-NeoX's head is called embed_out,
and routed experts, fused in transformers 5, are stored one by one
(source: transformers/conversion_mapping.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.model import ModelSpec, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One tensor of a checkpoint; a parameter is its sources laid end to end."""

    key: str
    shape: tuple[int, ...]


Sources = tuple[Source, ...]

_HEADS = ("lm_head.weight", "embed_out.weight")
_MIXTRAL = ("block_sparse_moe.experts.{}.w1.weight", "block_sparse_moe.experts.{}.w3.weight",
            "block_sparse_moe.experts.{}.w2.weight")  # fmt: skip
_QWEN = ("mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight",
         "mlp.experts.{}.down_proj.weight")  # fmt: skip


def candidates(model: ModelSpec, name: str, tensor: TensorSpec) -> Iterator[Sources]:
    """Every way a checkpoint may store a parameter, most likely first."""
    base = model.layer_prefix.partition(".")[0] + "."
    for sources in _layouts(name, tensor.shape):
        yield sources
        yield tuple(replace(source, key=source.key.removeprefix(base)) for source in sources)
        yield tuple(replace(source, key=base + source.key) for source in sources)
    if model.tied and name == model.ends[0].name:  # a tied pair may be stored under the head's name
        for key in _HEADS:
            yield (Source(key=key, shape=tensor.shape),)


def head_keys() -> tuple[str, ...]:
    """The names an output head may have."""
    return _HEADS


def _layouts(name: str, shape: tuple[int, ...]) -> Iterator[Sources]:
    yield (Source(key=name, shape=shape),)
    if name == "lm_head.weight":
        yield (Source(key="embed_out.weight", shape=shape),)
    if name.endswith(".mlp.gate.weight"):
        yield (Source(key=name.replace(".mlp.", ".block_sparse_moe."), shape=shape),)
    for experts in (_MIXTRAL, _QWEN):
        yield from _expert_by_expert(name, shape, experts)


def _expert_by_expert(name: str, shape: tuple[int, ...], keys: tuple[str, str, str]) -> Iterator[Sources]:
    gate, up, down = keys
    layer, _, kind = name.rpartition("mlp.experts.")
    if kind == "gate_up_proj":  # [E, 2I, H]: of each expert first gate, then up
        num_experts, rows, columns = shape
        yield tuple(
            Source(key=layer + key.format(expert), shape=(rows // 2, columns))
            for expert in range(num_experts)
            for key in (gate, up)
        )
    elif kind == "down_proj" and layer:  # [E, H, I]
        yield tuple(Source(key=layer + down.format(expert), shape=shape[1:]) for expert in range(shape[0]))
