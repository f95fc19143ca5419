"""A transformers config's reader: keys of the right kind, with the defaults of transformers' config class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hwprofiles.errors import UserError


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
class Config:
    """A transformers config, read key by key; a wrong value is a UserError that names the key."""

    model: str
    values: Mapping[str, object]

    def size(self, key: str, default: int, *aliases: str) -> int:
        """A positive integer; the first of `key` and `aliases` that is there and not null, else `default`."""
        found = next((name for name in (key, *aliases) if self.values.get(name) is not None), None)
        return default if found is None else self._integer(found, 1)

    def count(self, key: str, default: int) -> int:
        """An integer of 0 or more; `default` where it is missing or null."""
        return default if self.values.get(key) is None else self._integer(key, 0)

    def optional_size(self, key: str, default: int | None) -> int | None:
        """A positive integer or, where the config says null, None; `default` where the key is missing."""
        if key not in self.values:
            return default
        return None if self.values[key] is None else self._integer(key, 1)

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

    def _integer(self, key: str, least: int) -> int:
        value = self.values[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(key, f"an integer of {least} or more")
        return value
