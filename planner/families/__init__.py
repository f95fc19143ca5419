"""The model families: for each model_type of transformers, the function from a config to an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from planner.families.base import Family
from planner.families.bloom import bloom
from planner.families.falcon import falcon
from planner.families.gemma import gemma, gemma2
from planner.families.gpt2 import gpt2
from planner.families.gpt_neox import gpt_neox
from planner.families.llama import llama, mistral, qwen2, qwen3
from planner.families.moe import mixtral, qwen2_moe, qwen3_moe
from planner.families.opt import opt
from planner.families.phi3 import phi3

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "bloom": bloom,
        "falcon": falcon,
        "gemma": gemma,
        "gemma2": gemma2,
        "gpt2": gpt2,
        "gpt_neox": gpt_neox,
        "llama": llama,
        "mistral": mistral,
        "mixtral": mixtral,
        "opt": opt,
        "phi3": phi3,
        "qwen2": qwen2,
        "qwen2_moe": qwen2_moe,
        "qwen3": qwen3,
        "qwen3_moe": qwen3_moe,
    }
)
