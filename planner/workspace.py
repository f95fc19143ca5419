"""Workspace: what computing allocates beside the arenas and frees again; upper bounds, by following the tensors.

Names: a step feeds `num_new` tokens of each of `rows` sequences, which then have `num_total`. Sizes are in bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwprofiles.packing import quantised_bytes
from hwprofiles.units import KIB, MIB
from planner.layout import large_expert_tokens
from planner.model import LayerSpec, ModelSpec
from planner.policy import Bits

_FLOAT32 = 4
_INDEX = 8
_ROUTES = 4
"""Of a token that goes to an expert: the expert, its order, its place, and the token."""
_WRITTEN_OUT = frozenset({"gelu_new", "gelu_fast", "gelu_python", "gelu_accurate", "quick_gelu"})
"""Activation functions that transformers spells out in elementary operations, each with a result of its own."""
_WRITTEN_OUT_FAMILIES = frozenset({"bloom", "gpt2"})
"""Where a config that names no activation function has such a one."""
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_QUANTISE_BYTES, _QUANTISE_MOST = 12, 4 * MIB
"""Temporaries of hwprofiles/probes/quantize.py, which works slice by slice in float32: of one value, and of a slice."""
_TOKEN_BYTES = 1280
_REQUEST_BYTES, _ANSWER_BYTES = KIB, 64
SCRATCH_BYTES = MIB
"""What fused attention and matrix products keep on the side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """What one call of a layer is given."""

    rows: int
    num_new: int
    num_total: int

    @property
    def tokens(self) -> int:
        """New tokens of all rows."""
        return self.rows * self.num_new


def workspace_bytes(model: ModelSpec, fed: Fed, element_bytes: int, kv_bits: Bits, *, on_gpu: bool) -> int:
    """The most that any layer allocates at once."""
    kinds = {id(layer): layer for layer in model.layers}.values()
    mlp = max(_mlp(model, layer, fed.tokens, element_bytes, on_gpu=on_gpu) for layer in kinds)
    return SCRATCH_BYTES + max(mlp, _attention(model, fed, element_bytes, kv_bits))


def _attention(model: ModelSpec, fed: Fed, element_bytes: int, kv_bits: Bits) -> int:
    """The norm's result beside the larger of the stages that follow it."""
    heads = model.num_heads * model.head_dim * element_bytes
    kv = model.kv_dim * element_bytes
    packed = 2 * quantised_bytes(model.kv_dim) if kv_bits == 4 else 0
    attend = 4 * heads + 2 * kv  # Q, K, V beside rotary's products, or beside repeated K and V and the result
    store = heads + 6 * kv + packed  # Q, K, V beside both of the copies that K and V take to the cache
    token = model.hidden_size * element_bytes + max(attend, store)
    slices = quantise_temporaries(fed.tokens * 2 * model.kv_dim) if kv_bits == 4 else 0
    return fed.tokens * token + _scores(model, fed, element_bytes) + slices


def _scores(model: ModelSpec, fed: Fed, element_bytes: int) -> int:
    """Masks; and where softmax is not fused, its scores and for families with caches of their own all K and V."""
    pairs = fed.tokens * fed.num_total
    mask = pairs * (2 + element_bytes) + fed.num_new * fed.num_total * 2 * _INDEX
    if model.cpu_attention and not model.config.get("attn_logit_softcapping"):
        return mask
    scores = pairs * model.num_heads * (2 * element_bytes + 2 * _FLOAT32)
    gathered = 0 if model.cpu_attention else fed.rows * fed.num_total * 2 * model.kv_dim * element_bytes
    return mask + scores + gathered


def _mlp(model: ModelSpec, layer: LayerSpec, tokens: int, element_bytes: int, *, on_gpu: bool) -> int:
    """The residual and the norm's result beside what the activation function has in hand.

    On a GPU the experts of many tokens come in turn; the last chunk may have too few for that.
    """
    inner, hidden = _activation_copies(model, layer) * layer.intermediate_size, model.hidden_size
    if not layer.num_experts:
        return tokens * (3 * hidden + inner) * element_bytes
    gathered = layer.experts_per_token * (inner + 2 * hidden) + model.num_heads
    at_once = (3 * hidden + gathered) * element_bytes
    if not on_gpu or tokens < (least := large_expert_tokens(layer)):
        return tokens * at_once
    return max(math.ceil(least) * at_once, tokens * _in_turn(layer, hidden, inner, element_bytes))


def _in_turn(layer: LayerSpec, hidden: int, inner: int, element_bytes: int) -> int:
    """Of one token: all results beside what the one expert has in hand that has all tokens, or weighted in float32."""
    chosen = layer.experts_per_token
    results = chosen * (hidden * element_bytes + _ROUTES * _INDEX)
    weighted = (chosen + 1) * hidden * _FLOAT32
    return 3 * hidden * element_bytes + results + max((inner + hidden) * element_bytes, weighted)


def _activation_copies(model: ModelSpec, layer: LayerSpec) -> int:
    """How many tensors as wide as the MLP are alive at once."""
    if writes_activation_out(model):
        return 5
    if any("gate_up_proj" in tensor.name for tensor in layer.tensors):
        return 4  # gate and up come as one tensor, which lives on
    return 3 if layer.gated else 2


def writes_activation_out(model: ModelSpec) -> bool:
    """Whether the MLP's activation function is spelled out in elementary operations."""
    names = {str(model.config[key]) for key in _ACTIVATIONS if key in model.config}
    return bool(names & _WRITTEN_OUT) if names else model.config["model_type"] in _WRITTEN_OUT_FAMILIES


def quantise_temporaries(numel: int) -> int:
    """What quantising or dequantising this many values takes beside its input and output."""
    return min(_QUANTISE_BYTES * numel, _QUANTISE_MOST)


def argument_bytes(model: ModelSpec, num_new: int, num_total: int, element_bytes: int) -> int:
    """What one sequence's layers are called with: rotary tables, ids, and masks where attention is eager."""
    rotary = num_new * (2 * model.head_dim * element_bytes + 2 * _INDEX)
    if model.cpu_attention:
        return rotary
    return rotary + num_new * num_total * (element_bytes + 1) + model.num_heads * num_total * element_bytes


def tokenizer_bytes(model: ModelSpec) -> int:
    """A tokenizer of the model's vocabulary; measured: 1.0 to 1.2 KB a token while it is loaded."""
    return model.vocab_size * _TOKEN_BYTES


def request_bytes(num: int, prompt_len: int, gen_len: int) -> int:
    """Prompts as tuples and as rows of a gpu batch, and what is kept of their answers."""
    return num * (_REQUEST_BYTES + prompt_len * 2 * _INDEX + gen_len * _ANSWER_BYTES)


def padding_bytes(num_tokens: int) -> int:
    """Fill in the rows of gpu batches."""
    return num_tokens * _INDEX


def logits_bytes(model: ModelSpec, rows: int, element_bytes: int) -> int:
    """Logits in the model's dtype, and twice in float32."""
    return rows * model.vocab_size * (element_bytes + 2 * _FLOAT32)


def greedy_logits_bytes(model: ModelSpec, rows: int, element_bytes: int) -> int:
    """The same where the largest is taken: once in float32."""
    return rows * model.vocab_size * (element_bytes + _FLOAT32)
