"""Shapes of parameters and of layers, and the few kinds of module they come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One parameter: its name in transformers' module and its shape."""

    name: str
    """Relative to the layer ("self_attn.q_proj.weight"); the full name for what is outside the layers."""
    shape: tuple[int, ...]
    quantizable: bool
    """True for the matrices of decoder layers; never for norms, biases, MoE routers or the ends."""
    numel: int = field(init=False, repr=False, compare=False)
    """Number of elements, counted once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "numel", math.prod(self.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One decoder layer: exactly its parameters, in the order of named_parameters."""

    tensors: tuple[TensorSpec, ...]
    linear_flops_per_token: int
    """2 x multiply-adds of the matrices one token uses: of routed experts only the chosen ones."""
    sliding_window: int | None
    expert_numel: int = 0
    """Parameters in routed experts, all of them; 0 in a dense layer."""
    num_experts: int = 0
    experts_per_token: int = 0
    intermediate_size: int
    """Widest MLP activation of one token (of one expert in an MoE layer)."""
    gated: bool
    """The MLP multiplies two projections (gate and up)."""
    numel: int = field(init=False, repr=False, compare=False)
    """Number of elements of all its tensors, counted once."""
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numel", sum(tensor.numel for tensor in self.tensors))
        object.__setattr__(self, "_hash", hash((self.tensors, self.sliding_window)))

    def __hash__(self) -> int:
        """Found once: what a layer's kind determines is looked up by the layer, and it has many tensors."""
        return self._hash

    def kept_tokens(self, num_tokens: int) -> int:
        """Of a sequence's tokens, those whose K and V it keeps: as many as its window lets a token attend to.

        Token t lies in place t mod this many, so that a new one takes the place of the oldest.
        """
        return num_tokens if self.sliding_window is None else min(self.sliding_window, num_tokens)


Tensors = tuple[TensorSpec, ...]


def matrix(name: str, *shape: int, quantizable: bool = True) -> Tensors:
    """One parameter of two or more dimensions."""
    return (TensorSpec(name=name, shape=shape, quantizable=quantizable),)


def linear(name: str, rows: int, columns: int, *, bias: bool = False) -> Tensors:
    """A projection's weight [rows, columns] = [out, in], and its bias [out]."""
    weight = matrix(f"{name}.weight", rows, columns)
    return weight + vector(f"{name}.bias", rows) if bias else weight


def rms_norm(name: str, width: int) -> Tensors:
    """A norm's weight."""
    return vector(f"{name}.weight", width)


def layer_norm(name: str, width: int) -> Tensors:
    """A norm's weight and bias."""
    return vector(f"{name}.weight", width) + vector(f"{name}.bias", width)


def ends(*tensors: Tensors) -> Tensors:
    """What is outside the layers, in named_parameters order; never quantised."""
    return tuple(replace(tensor, quantizable=False) for group in tensors for tensor in group)


_BEFORE_LAYERS = frozenset(
    {"embed_tokens", "embed_positions", "project_in", "wte", "wpe", "embed_in"}
    | {"word_embeddings", "word_embeddings_layernorm"}
)
_AFTER_LAYERS = frozenset({"norm", "final_layer_norm", "ln_f", "project_out", "lm_head"})


def is_before_layers(tensor: TensorSpec) -> bool:
    """Whether an end is used before the first layer; one of a module unknown here counts for both sides."""
    return _module(tensor) not in _AFTER_LAYERS


def is_after_layers(tensor: TensorSpec) -> bool:
    """Whether an end is used after the last layer, the head's tie to the embedding left out."""
    return _module(tensor) not in _BEFORE_LAYERS


def _module(tensor: TensorSpec) -> str:
    return tensor.name.rpartition(".")[0].rpartition(".")[2]


def layer(
    *tensors: Tensors,
    intermediate_size: int,
    gated: bool,
    sliding_window: int | None = None,
    num_experts: int = 0,
    experts_per_token: int = 0,
) -> LayerSpec:
    """A layer of these tensors; matrices [E, out, in] are routed experts, of which a token uses a few."""
    flat = tuple(tensor for group in tensors for tensor in group)
    dense_numel = sum(tensor.numel for tensor in flat if len(tensor.shape) == 2)
    expert_numel = sum(tensor.numel for tensor in flat if len(tensor.shape) == 3)
    used_numel = expert_numel // num_experts * experts_per_token if num_experts else 0
    return LayerSpec(
        tensors=flat,
        linear_flops_per_token=2 * (dense_numel + used_numel),
        sliding_window=sliding_window,
        expert_numel=expert_numel,
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        intermediate_size=intermediate_size,
        gated=gated,
    )


def layers_of(kinds: Iterable[K], build: Callable[[K], LayerSpec]) -> tuple[LayerSpec, ...]:
    """One layer for each kind, in order; layers of one kind are one object."""
    order = tuple(kinds)
    built = {kind: build(kind) for kind in dict.fromkeys(order)}
    return tuple(built[kind] for kind in order)


def vector(name: str, width: int) -> Tensors:
    """A parameter of one dimension."""
    return (TensorSpec(name=name, shape=(width,), quantizable=False),)
