"""The model families: for each model_type of transformers, the function from a config to an architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from planner.families.base import Architecture, Config
from planner.families.llama import llama, mistral, qwen2, qwen3
from planner.families.opt import opt

FAMILIES: Mapping[str, Callable[[Config], Architecture]] = MappingProxyType(
    {
        "llama": llama,
        "mistral": mistral,
        "opt": opt,
        "qwen2": qwen2,
        "qwen3": qwen3,
    }
)
