"""What a family is made of: tensor and layer shapes, the architecture it returns, its config's reader."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from hwprofiles.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One parameter: its name in transformers' module and its shape."""

    name: str
    """Relative to the layer ("self_attn.q_proj.weight"); the full name for what is outside the layers."""
    shape: tuple[int, ...]
    quantizable: bool
    """True for the matrices of decoder layers; never for norms, biases, MoE routers or the ends."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


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

    @property
    def numel(self) -> int:
        """Number of elements of all its tensors."""
        return sum(tensor.numel for tensor in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Attention heads; fewer for keys and values under grouped queries."""

    num: int
    num_kv: int
    dim: int

    @property
    def q_dim(self) -> int:
        """Width of a query of all heads."""
        return self.num * self.dim

    @property
    def kv_dim(self) -> int:
        """Width of a key, or a value, of all heads."""
        return self.num_kv * self.dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What a family makes of a config; ModelSpec describes the fields."""

    layer_prefix: str
    layers: tuple[LayerSpec, ...]
    ends: tuple[TensorSpec, ...]
    tied: bool
    hidden_size: int
    vocab_size: int
    heads: Heads
    max_positions: int | None
    cpu_attention: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A transformers config, read key by key; a wrong value is a UserError that names the key."""

    model: str
    values: Mapping[str, object]

    def size(self, key: str, default: int, *aliases: str) -> int:
        """A positive integer; the first of `key` and `aliases` that is there and not null, else `default`."""
        found = next((name for name in (key, *aliases) if self.values.get(name) is not None), None)
        return default if found is None else self._positive(found)

    def optional_size(self, key: str, default: int | None) -> int | None:
        """A positive integer or, where the config says null, None; `default` where the key is missing."""
        if key not in self.values:
            return default
        return None if self.values[key] is None else self._positive(key)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean; `default` where it is missing or null."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def strings(self, key: str) -> tuple[str, ...] | None:
        """A list of strings; None where it is missing or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of strings")
        return tuple(value)

    def indices(self, key: str) -> frozenset[int]:
        """A list of layer numbers; empty where it is missing or null."""
        value = self.values.get(key)
        if value is None:
            return frozenset()
        if not isinstance(value, list | tuple) or not all(isinstance(item, int) for item in value):
            raise self.wrong(key, "a list of layer numbers")
        return frozenset(value)

    def heads(self, hidden: int, *, num: int, num_kv: int | None, head_dim: int | None = None) -> Heads:
        """Heads under the usual keys, with the class defaults given; null means as many kv heads as heads."""
        heads = self.size("num_attention_heads", num)
        kv_heads = self.optional_size("num_key_value_heads", num_kv) or heads
        dim = self.optional_size("head_dim", head_dim)
        return self.checked_heads(hidden, heads, kv_heads, dim)

    def checked_heads(self, hidden: int, heads: int, kv_heads: int, dim: int | None = None) -> Heads:
        """Heads that divide evenly; `dim` defaults to hidden / heads."""
        if dim is None and hidden % heads:
            raise UserError(
                f"model {self.model}: hidden size {hidden} is not a multiple of its {heads} heads"
            )
        if heads % kv_heads:
            raise UserError(f"model {self.model}: {heads} heads are not a multiple of {kv_heads} kv heads")
        return Heads(num=heads, num_kv=kv_heads, dim=dim or hidden // heads)

    def windows(self, window: int | None, sliding: Iterable[bool]) -> tuple[int | None, ...]:
        """The sliding window of each layer: from layer_types if the config has them, else where `sliding`."""
        flags = tuple(sliding)
        types = self.strings("layer_types")
        if types is not None:
            if len(types) != len(flags):
                raise self.wrong("layer_types", f"one entry for each of {len(flags)} layers")
            flags = tuple(kind == "sliding_attention" for kind in types)
        return tuple(window if flag else None for flag in flags)

    def wrong(self, key: str, expected: str) -> UserError:
        """The error for a key that holds something else than `expected`."""
        return UserError(f"model {self.model}: config key {key} is {self.values[key]!r}, expected {expected}")

    def _positive(self, key: str) -> int:
        value = self.values[key]
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.wrong(key, "a positive integer")
        return value


Tensors = tuple[TensorSpec, ...]


def matrix(name: str, *shape: int, quantizable: bool = True) -> Tensors:
    """One parameter of two or more dimensions."""
    return (TensorSpec(name=name, shape=shape, quantizable=quantizable),)


def linear(name: str, rows: int, columns: int, *, bias: bool = False) -> Tensors:
    """A projection's weight [rows, columns] = [out, in], and its bias [out]."""
    weight = matrix(f"{name}.weight", rows, columns)
    return weight + _vector(f"{name}.bias", rows) if bias else weight


def rms_norm(name: str, width: int) -> Tensors:
    """A norm's weight."""
    return _vector(f"{name}.weight", width)


def layer_norm(name: str, width: int) -> Tensors:
    """A norm's weight and bias."""
    return _vector(f"{name}.weight", width) + _vector(f"{name}.bias", width)


def ends(*tensors: Tensors) -> Tensors:
    """What is outside the layers, in named_parameters order; never quantised."""
    return tuple(replace(tensor, quantizable=False) for group in tensors for tensor in group)


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


def _vector(name: str, width: int) -> Tensors:
    return (TensorSpec(name=name, shape=(width,), quantizable=False),)
