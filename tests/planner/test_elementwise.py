"""Elementwise work against what torch's dispatcher sees of transformers' own layers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from planner.elementwise import elementwise
from planner.layout import DTYPE_BYTES
from planner.model import spec_from_config
from tests.dispatched import Seen

HIDDEN, WIDE, HEADS, TOKENS = 256, 1024, 4, 64
DENSE = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "vocab_size": 64,
    "max_position_embeddings": 128,
}
GQA = {**DENSE, "intermediate_size": WIDE, "num_key_value_heads": 2, "head_dim": HIDDEN // HEADS}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, dict[str, object]] = {
    "opt": {**DENSE, "ffn_dim": WIDE, "word_embed_proj_dim": HIDDEN},
    "llama": GQA,
    "mistral": GQA,
    "qwen2": GQA,
    "qwen3": GQA,
    "gemma": GQA,
    "phi3": {**GQA, **IDS},
    "gpt_neox": {**DENSE, "intermediate_size": WIDE},
    "gpt2": {"n_embd": HIDDEN, "n_head": HEADS, "vocab_size": 64, "n_positions": 128, **IDS},
    "mixtral": {**GQA, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def seen(family: str, config: Mapping[str, object], dtype: torch.dtype, num_layers: int) -> Seen:
    """A forward over one prompt."""
    name = "n_layer" if family == "gpt2" else "num_hidden_layers"
    whole = AutoConfig.for_model(family, **{**config, name: num_layers})
    model = AutoModelForCausalLM.from_config(whole, dtype=dtype).eval()
    with torch.no_grad(), Seen() as counted:
        model(input_ids=torch.ones(1, TOKENS, dtype=torch.long), use_cache=False)
    return counted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_counts_are_those_of_the_modules(family: str, dtype: str) -> None:
    """Operations within a tenth and bytes within a fifth, for each family in both widths."""
    config = FAMILIES[family]
    more, few = (seen(family, config, getattr(torch, dtype), layers) for layers in (4, 2))
    spec = spec_from_config(family, {"model_type": family, "dtype": dtype, **config})
    counted = elementwise(spec, spec.layers[0])
    stored = 2 * (2 * spec.kv_dim + spec.num_heads * spec.head_dim) * DTYPE_BYTES[spec.dtype]
    operations, moved = (more.operations - few.operations) / 2, (more.moved - few.moved) / 2 / TOKENS
    assert counted.operations - 3 == pytest.approx(operations, rel=0.1)
    assert counted.token_bytes - stored == pytest.approx(moved, rel=0.2)
