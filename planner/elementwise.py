"""Elementwise work: what a layer does beside its matrices and its attention, as transformers writes it out.

Every operation reads its operands from memory and writes its result to a new tensor; nothing is fused. The counts
follow the modules: norms, residual sums, rotary embedding, the MLP's activation, the step from K and V to the cache.
tests/planner/test_elementwise.py holds them against what torch's dispatcher sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from planner.families.tensors import LayerSpec
from planner.layout import DTYPE_BYTES
from planner.model import ModelSpec
from planner.workspace import writes_activation_out

_FLOAT32 = 4
_WITHOUT_ROTARY = frozenset({"opt", "gpt2", "bloom"})
_SCALES_QUERIES = frozenset({"opt"})
"""By an operation of its own, before attention."""
_ROTARY_OPERATIONS, _ROTARY_PASSES = 5, 12
"""Of Q, and of K: two products, the halves turned (negate, join), a sum; each result read again by the next."""
_ROTARY_RESULTS = 4.5
"""New tensors of the size of Q, or of K."""
_PARTS_OPERATIONS, _PARTS_PASSES = 2, 2
"""Q, and K, joined again where only a part of each head is turned."""
_ACTIVATION_OPERATIONS = {True: 8, False: 1}
"""Written out in elementary operations, or one function."""
_ROUTER_OPERATIONS = 19
"""Softmax, top-k, sorting tokens by expert, gathering them, weighting and adding up their results."""
_CACHE_OPERATIONS = 3
"""Copies of K and of V, and of attention's result to the layout that the layer goes on with."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What operations read and write for a token, and the new tensors that they and products have as results."""

    row_bytes: int
    """A token's part of each result."""
    token_bytes: float
    num_results: float


@dataclass(frozen=True, slots=True)
class Elementwise:
    """Of one layer: operations a call, matrix products and attention included, and bytes moved a token."""

    operations: int
    moved: tuple[Moved, ...]

    @property
    def token_bytes(self) -> float:
        """Of all operations."""
        return sum(part.token_bytes for part in self.moved)


def has_rotary(model: ModelSpec) -> bool:
    """Whether positions turn queries and keys."""
    return model.config["model_type"] not in _WITHOUT_ROTARY


@lru_cache(maxsize=256)
def elementwise(model: ModelSpec, layer: LayerSpec) -> Elementwise:
    """The counts of one layer."""
    norm_operations, norms = _norms(model, layer)
    rotary_operations, rotary = _rotary(model)
    mlp_operations, mlp = _mlp(model, layer)
    size = DTYPE_BYTES[model.dtype]
    hidden, query = model.hidden_size * size, model.num_heads * model.head_dim * size
    scales = model.config["model_type"] in _SCALES_QUERIES
    rest = (
        Moved(hidden, 2.0 * 3 * hidden, 2),  # two sums
        Moved(query, 2.0 * (1 + scales) * query, 2 + scales),  # attention's result, and its copy
        Moved(0, 2.0 * 2 * model.kv_dim * size, 0),  # into the cache, which is there
        *(Moved(tensor.shape[0] * size, 0.0, 1) for tensor in layer.tensors if len(tensor.shape) == 2),
    )
    own = sum(len(tensor.shape) > 1 for tensor in layer.tensors) + 1  # products, and attention
    return Elementwise(
        operations=own
        + norm_operations
        + rotary_operations
        + mlp_operations
        + 2
        + scales
        + _CACHE_OPERATIONS,
        moved=(*norms, *rotary, *mlp, *rest),
    )


def _norms(model: ModelSpec, layer: LayerSpec) -> tuple[int, list[Moved]]:
    """LayerNorm is one operation; RMSNorm is written out, in float32."""
    names = {tensor.name for tensor in layer.tensors}
    size, operations = DTYPE_BYTES[model.dtype], 0
    moved: list[Moved] = []
    for tensor in layer.tensors:
        name, _, kind = tensor.name.rpartition(".")
        if len(tensor.shape) > 1 or kind != "weight":
            continue
        width = tensor.numel
        if width == model.head_dim != model.hidden_size:  # a norm on each head of Q or of K
            width *= model.num_kv_heads if name.endswith("k_norm") else model.num_heads
        is_half = size < _FLOAT32
        if f"{name}.bias" in names:
            operations += 1
            moved.append(Moved(size * width, 2.0 * size * width, 1))
        else:  # square, mean, its root (2), product, product with the weight; to float32 and back
            operations += 6 + 2 * is_half
            passes = 5 * _FLOAT32 + 2 * size + is_half * (2 * _FLOAT32 + 2 * size)
            moved.append(Moved(_FLOAT32 * width, float(passes * width), 3 + is_half))
    return operations, moved


def _rotary(model: ModelSpec) -> tuple[int, list[Moved]]:
    if not has_rotary(model):
        return 0, []
    rows = [dim * DTYPE_BYTES[model.dtype] for dim in (model.num_heads * model.head_dim, model.kv_dim)]
    part = model.config.get("partial_rotary_factor", model.config.get("rotary_pct", _rotary_part(model)))
    if not isinstance(part, int | float) or part == 1:
        return 2 * _ROTARY_OPERATIONS, [
            Moved(row, float(_ROTARY_PASSES * row), _ROTARY_RESULTS) for row in rows
        ]
    operations, passes = 2 * _ROTARY_OPERATIONS + _PARTS_OPERATIONS, _ROTARY_PASSES * part + _PARTS_PASSES
    return operations, [Moved(row, passes * row, _ROTARY_RESULTS * part + 1) for row in rows]


def _rotary_part(model: ModelSpec) -> float:
    """Of each head, what transformers turns where the config does not say."""
    return 0.25 if model.config["model_type"] == "gpt_neox" else 1.0


def _mlp(model: ModelSpec, layer: LayerSpec) -> tuple[int, list[Moved]]:
    """The activation function, the product with the gate, and what routing to experts takes."""
    size, is_written_out = DTYPE_BYTES[model.dtype], writes_activation_out(model)
    operations = _ACTIVATION_OPERATIONS[is_written_out] + layer.gated
    passes = (18 if is_written_out else 2) + 3 * layer.gated
    row = layer.intermediate_size * max(1, layer.experts_per_token) * size
    wide = Moved(row, float(passes * row), operations)
    if not layer.num_experts:
        return operations, [wide]
    routed = layer.experts_per_token * model.hidden_size * size
    return operations + _ROUTER_OPERATIONS, [wide, Moved(routed, 8.0 * routed, 4)]
