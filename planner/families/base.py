"""The contract of a family: a function from a config to an architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.families.config import Config, Heads
from planner.families.tensors import LayerSpec, TensorSpec


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


Family = Callable[[Config], Architecture]
"""One for each model_type; parameter names and shapes are those of transformers 5."""
