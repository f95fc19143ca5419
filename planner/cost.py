"""Cost: the work of each task on each resource. The only place with such formulas; docs/cost-model.md explains them.

Whatever a policy's splits decide comes in as amounts, and the formulas use only + and * on those, so that an amount
may be a number or a linear expression of an LP. The caller takes the largest lane, or adds one constraint for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from planner.layout import DTYPE_BYTES, kv_vector_bytes, quantised_bytes
from planner.machine import Rates
from planner.model import LayerSpec, ModelSpec
from planner.policy import Tier
from planner.schedule import TaskKind
from planner.work import A, Choice, Compute, Held, Move, Step
from planner.workload import Workload

OPS_PER_LAYER = 12
"""Kernels of a dense layer: two norms, four projections, attention, two of the MLP and its activation, two sums."""
OPS_PER_EXPERT = 4
"""Kernels of one expert: two products, the activation, the weighted sum."""
OPS_OF_ENDS = 4
"""Embedding and positions, final norm, head."""
EAGER_PASSES = 6
"""Reads and writes of attention scores where attention is not fused: product, mask (2), softmax (2), product."""


Speeds = Mapping[tuple[str, str], float]
"""Bytes per second of the moves of (kind, resource)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """The formulas for one model, workload and choice on one machine."""

    model: ModelSpec
    workload: Workload
    choice: Choice
    compute_tier: Tier
    rates: Rates

    @property
    def element_bytes(self) -> int:
        """Of the model's dtype."""
        return DTYPE_BYTES[self.model.dtype]

    @property
    def token_bytes(self) -> int:
        """K and V of one token of one sequence in one layer, in the cache's bits."""
        return 2 * kv_vector_bytes(self.model, self.choice.kv_bits, self.element_bytes)

    def moves(self, held: Held[A], step: Step) -> list[Move[A]]:
        """Every copy of one pass of one layer."""
        moves = [
            *self._weight_moves(held),
            *self._activation_moves(held, step),
            *self._cache_moves(held, step),
        ]
        return [move for move in moves if self.compute_tier == "gpu" or move.resource not in ("h2d", "d2h")]

    def _weight_moves(self, held: Held[A]) -> list[Move[A]]:
        load, counts = TaskKind.LOAD_WEIGHT, held.counts
        both = held.cpu_weight_bytes + held.disk_weight_bytes
        return [
            Move(
                kind=load, resource="disk_read", count=counts.disk_weights, num_bytes=held.disk_weight_bytes
            ),
            Move(kind=load, resource="h2d", count=counts.link_weights, num_bytes=both),
        ]

    def _activation_moves(self, held: Held[A], step: Step) -> list[Move[A]]:
        row = step.num_new * self.model.hidden_size * self.element_bytes
        moved, on_disk = held.moved_rows * row, held.disk_rows * row
        load, store, counts = TaskKind.LOAD_ACTIVATION, TaskKind.STORE_ACTIVATION, held.counts
        return [
            Move(kind=load, resource="disk_read", count=counts.disk_activations, num_bytes=on_disk),
            Move(kind=load, resource="h2d", count=counts.moved_activations, num_bytes=moved),
            Move(kind=store, resource="d2h", count=counts.moved_activations, num_bytes=moved),
            Move(kind=store, resource="disk_write", count=counts.disk_activations, num_bytes=on_disk),
        ]

    def _cache_moves(self, held: Held[A], step: Step) -> list[Move[A]]:
        load, store, counts = TaskKind.LOAD_CACHE, TaskKind.STORE_CACHE, held.counts
        is_decode = step.phase == "decode"
        stored = (
            held.streamed_token_bytes if is_decode else held.streamed_token_bytes + held.attended_token_bytes
        )
        num_stored = counts.streamed_cache if is_decode else counts.stored_cache
        written = held.disk_token_bytes * step.num_new
        moves = [
            Move(kind=store, resource="d2h", count=num_stored, num_bytes=stored * step.num_new),
            Move(kind=store, resource="disk_write", count=counts.disk_cache, num_bytes=written),
        ]
        if is_decode:
            read = held.disk_token_bytes * step.num_cached
            loaded = held.streamed_token_bytes * step.num_cached
            moves += [
                Move(kind=load, resource="disk_read", count=counts.disk_cache, num_bytes=read),
                Move(kind=load, resource="h2d", count=counts.streamed_cache, num_bytes=loaded),
            ]
        return moves

    def compute(self, layer: LayerSpec, held: Held[A], step: Step) -> Compute[A]:
        """The compute of one pass of one layer."""
        linear, unpacking = self._linear(layer, step), self._dequantise(layer)
        row_s, row_flops, row_bytes = self._attention(step)
        near, attended = held.near_rows, held.attended_rows
        if step.phase == "prefill":
            near, attended = near + attended, attended * 0.0
        factor, overhead = self.rates.factor(self.compute_tier), self.rates.task_overhead_s
        far_s, far_bytes = self._cpu_attention(step)
        num_attends = held.counts.attended_cache * float(step.phase == "decode")
        started = overhead if self.rates.on_cpu else 0.0
        return Compute(
            count=held.batches,
            linear_s=held.batches * (factor * (linear.seconds + started))
            + held.passes * (factor * unpacking.seconds),
            near_s=near * (factor * row_s),
            attend_s=(attended * far_s + num_attends * overhead) * self.rates.factor("cpu"),
            attend_count=num_attends,
            flops=held.batches * linear.flops + near * row_flops,
            num_bytes=held.batches * linear.num_bytes + held.passes * unpacking.num_bytes + near * row_bytes,
            attend_bytes=attended * far_bytes,
        )

    def _linear(self, layer: LayerSpec, step: Step) -> Piece:
        """Everything but attention, for one gpu batch; prefill goes through it in chunks of prefill_rows."""
        batch = self.choice.gpu_batch_size
        chunks = math.ceil(batch / self.choice.prefill_rows) if step.phase == "prefill" else 1
        tokens = batch * step.num_new / chunks
        dense = layer.numel - layer.expert_numel
        expert_flops = 2.0 * layer.expert_numel * layer.experts_per_token / max(1, layer.num_experts)
        hit = _experts_hit(layer, tokens)
        parts = [self._product(tokens, tokens * (layer.linear_flops_per_token - expert_flops), dense)]
        if layer.num_experts:
            used = layer.expert_numel * hit / layer.num_experts
            parts.append(self._product(tokens * layer.experts_per_token / hit, tokens * expert_flops, used))
        elementwise = self._elementwise(layer, tokens)
        launches = (OPS_PER_LAYER + OPS_PER_EXPERT * hit) * self.rates.launch_overhead_s
        return _sum([*parts, elementwise, Piece(launches, 0.0, 0.0)]) * chunks

    def _product(self, rows: float, flops: float, numel: float) -> Piece:
        """Matrix products of `rows` rows: bound by FLOP or by reading the matrices."""
        read = numel * self.element_bytes
        seconds = max(flops / self.rates.gemm.at(rows), read / self.rates.memory_bytes_per_s)
        return Piece(seconds, flops, read)

    def _elementwise(self, layer: LayerSpec, tokens: float) -> Piece:
        """Two norms and two sums over the hidden states, the activation function over the MLP's width."""
        width = layer.intermediate_size * (3 if layer.gated else 2) * max(1, layer.experts_per_token)
        touched = tokens * (10 * self.model.hidden_size + width) * self.element_bytes
        return Piece(touched / self.rates.memory_bytes_per_s, 0.0, touched)

    def _dequantise(self, layer: LayerSpec) -> Piece:
        """Unpacking a layer's 4-bit weights, once a pass."""
        if self.choice.weight_bits == 16:
            return Piece(0.0, 0.0, 0.0)
        matrices = [tensor.numel for tensor in layer.tensors if tensor.quantizable]
        touched = float(sum(quantised_bytes(numel) + numel * self.element_bytes for numel in matrices))
        return Piece(touched / self.rates.memory_bytes_per_s, 0.0, touched)

    def _attention(self, step: Step) -> tuple[float, float, float]:
        """(seconds, FLOP, bytes) of one sequence's attention on the compute device."""
        model, rates = self.model, self.rates
        pairs = step.num_new * step.context * (0.5 if step.phase == "prefill" else 1.0)
        flops = 4.0 * pairs * model.num_heads * model.head_dim
        read = self._kv_bytes(step.context)
        scores = 0.0 if model.cpu_attention else EAGER_PASSES * model.num_heads * self.element_bytes * pairs
        changed = self._requantised_bytes(step)
        seconds = max(flops / rates.gemm.best, read / rates.attention_bytes_per_s)
        return seconds + (scores + changed) / rates.memory_bytes_per_s, flops, read + scores + changed

    def _cpu_attention(self, step: Step) -> tuple[float, float]:
        """(seconds, bytes) of one sequence's decode attention on the CPU; prefill attends on the compute device."""
        read, changed = self._kv_bytes(step.context), self._requantised_bytes(step)
        seconds = read / self.rates.cpu_attention_bytes_per_s + changed / self.rates.cpu_memory_bytes_per_s
        return seconds, read + changed

    def _kv_bytes(self, num_tokens: float) -> float:
        """K and V of one sequence in the model's dtype."""
        return 2.0 * num_tokens * self.model.kv_dim * self.element_bytes

    def _requantised_bytes(self, step: Step) -> float:
        """Packed and unpacked bytes of the K and V that one sequence's attention converts."""
        if self.choice.kv_bits == 16:
            return 0.0
        converted = step.num_new if step.phase == "prefill" else step.num_cached
        return converted * self.token_bytes + self._kv_bytes(converted)

    def ends(self, step: Step) -> Piece:
        """Embedding and head of one gpu batch; only a sequence's last token goes through the head."""
        batch, model = self.choice.gpu_batch_size, self.model
        head = self._product(batch, 2.0 * batch * model.head_numel, model.head_numel)
        embedded = 2.0 * batch * step.num_new * model.hidden_size * self.element_bytes
        overhead = OPS_OF_ENDS * self.rates.launch_overhead_s + (
            2 * self.rates.task_overhead_s if self.rates.on_cpu else 0.0
        )
        total = _sum([head, Piece(embedded / self.rates.memory_bytes_per_s + overhead, 0.0, embedded)])
        return Piece(total.seconds * self.rates.factor(self.compute_tier), total.flops, total.num_bytes)

    def speed(self, resource: str, transfer_bytes: float) -> float:
        """Bytes per second of copies of this size."""
        curves = {
            "h2d": self.rates.h2d,
            "d2h": self.rates.d2h,
            "disk_read": self.rates.disk_read,
            "disk_write": self.rates.disk_write,
        }
        return curves[resource].at(transfer_bytes)

    def speeds(self, moves: Iterable[Move[float]]) -> dict[tuple[str, str], float]:
        """The speed of each move at its mean size."""
        return {m.key: self.speed(m.resource, m.num_bytes / max(m.count, 1e-9)) for m in moves}

    def seconds(self, move: Move[A], speeds: Speeds) -> A:
        """Time of a move on its resource, handing it to its thread included."""
        has_thread = self.rates.on_cpu or move.resource.startswith("disk")
        overhead = self.rates.task_overhead_s if has_thread else 0.0
        return (move.num_bytes * (1 / speeds[move.key]) + move.count * overhead) * self.rates.factor(
            move.resource
        )

    def lanes(self, moves: Iterable[Move[A]], compute: Compute[A], speeds: Speeds) -> list[tuple[str, A]]:
        """(resource, seconds) that one pass of one layer takes at least, with everything overlapped."""
        nothing = compute.count * 0.0
        busy = dict.fromkeys(("h2d", "d2h", "disk_read", "disk_write"), nothing)
        moved = dict(busy)
        for move in moves:
            busy[move.resource] = busy[move.resource] + self.seconds(move, speeds)
            moved[move.resource] = moved[move.resource] + move.num_bytes
        near, attended = compute.linear_s + compute.near_s, compute.linear_s + compute.attend_s
        lanes = [(self.compute_tier, near), *busy.items()]
        lanes.append(("disk_read", (busy["disk_read"] + busy["disk_write"]) * (1 / self.rates.disk_parallel)))
        if self.compute_tier == "gpu":
            lanes.append(("cpu", attended))
            lanes.append(
                (
                    "h2d",
                    (moved["h2d"] + moved["d2h"]) * (self.rates.factor("h2d") / self.rates.both_bytes_per_s),
                )
            )
        lanes.append(("cpu_mem", self._host_memory_s(moved, compute)))
        if math.isfinite(self.rates.parallel):
            shared = near + compute.attend_s if self.rates.on_cpu else compute.attend_s
            for seconds in busy.values():
                shared = shared + seconds
            lanes.append(("cpu" if self.rates.on_cpu else "cpu_mem", shared * (1 / self.rates.parallel)))
        return lanes

    def _host_memory_s(self, moved: Mapping[str, A], compute: Compute[A]) -> A:
        """Host memory's time: an emulated GPU's memory and copies' far ends are in it too."""
        crossings = 2.0 if self.rates.on_cpu else 1.0
        touched = compute.attend_bytes + (moved["h2d"] + moved["d2h"]) * crossings
        touched = touched + moved["disk_read"] + moved["disk_write"]
        if self.rates.on_cpu:
            touched = touched + compute.num_bytes
        return touched * (self.rates.factor("cpu_mem") / self.rates.cpu_memory_bytes_per_s)

    def chain(self, moves: Iterable[Move[A]], compute: Compute[A], speeds: Speeds, num_gpu_batches: int) -> A:
        """From a gpu batch's activations in this layer to those in the next: nothing of it overlaps itself."""
        total = compute.linear_s + compute.near_s
        for move in moves:
            if move.kind in (TaskKind.LOAD_ACTIVATION, TaskKind.STORE_ACTIVATION):
                total = total + self.seconds(move, speeds)
        return total * (1 / num_gpu_batches)


@dataclass(frozen=True, slots=True)
class Piece:
    """Seconds, FLOP and bytes of a piece of compute."""

    seconds: float
    flops: float
    num_bytes: float

    def __mul__(self, times: float) -> Piece:
        return Piece(self.seconds * times, self.flops * times, self.num_bytes * times)


def _sum(parts: list[Piece]) -> Piece:
    return Piece(sum(p.seconds for p in parts), sum(p.flops for p in parts), sum(p.num_bytes for p in parts))


def _experts_hit(layer: LayerSpec, tokens: float) -> float:
    """Expected distinct experts that `tokens` tokens choose, each k of E at random: E(1 - (1 - k/E)^tokens)."""
    if not layer.num_experts:
        return 0.0
    missed = 1 - layer.experts_per_token / layer.num_experts
    return layer.num_experts * (1 - missed**tokens)
