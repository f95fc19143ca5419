"""Cost of computing: the time of projections, MLP, attention, dequantising, and the model's ends.

The half of cost.py that is about arithmetic; the other half is about copies. docs/cost-model.md explains it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from planner.elementwise import elementwise
from planner.factors import UNPACK
from planner.graphs import OPERATIONS_OF_END, graph_operations
from planner.layout import DTYPE_BYTES, is_large_expert
from planner.model import LayerSpec, ModelSpec
from planner.packed_work import PACKED_BYTES, PackedRates, packed, unpacked
from planner.piece import NOTHING, Piece, total
from planner.plan import Phase
from planner.policy import Tier
from planner.products import Shape, expert_matrices, experts_hit, matrices, output_weight
from planner.rates import Rates
from planner.schedule import TaskKind
from planner.work import A, Choice, Compute, Held, Step

ENGINE_CALLS = 0.6
"""What the engine does around a layer's call (binding weights, finding rows, notes), in calls of a small layer
(`Rates.small_layer_s`): seen on two cores with tiny layers of OPT, Llama and Qwen 3."""
REPLAY_OPERATIONS = 2
"""Of an end that is replayed: to set its position, or to send what was sampled to the host."""
TASK_CALLS, AROUND_CALLS = 0.2, 0.57
"""The same beside a GPU: for any compute task (its place in the schedule, events, notes), and for one that calls
modules (binding weights, finding rows). On H200 hosts 0.1 to 0.15 and 0.25 to 0.4 ms, with layers of OPT-1.3B."""
PROMPT_CALLS = 0.35
"""What a chunk of a prefill takes beside, where its attention is called and its K and V stored: a layer of OPT-1.3B
took 0.8 to 1.1 ms in all on three H200 hosts."""
EXCHANGE_OPERATIONS = 6
"""Of a gpu batch that the CPU attends rows of: queries to float32 and to the host, results back."""
BESIDE_ATTENTION = 1.0
"""How much longer the host then takes to ask for the layer, as a share: its other cores read memory as fast as they
can. On H200 hosts a loop of Python's took 2.2 times as long meanwhile, and compute tasks 1.2 to 2.4 times."""
GROUPED_SHARE = 0.63
"""What torch's product for all experts at once does on a GPU, of what dense ones do: Mixtral's 2.8 GB in 1.09 ms on an
H200 for 18 to 72 tokens, and 512 of them in 1.9 ms instead of 1.3."""
BY_EXPERT_SHARE = 0.7
"""The same of products for one expert after another, to which its tokens are gathered: Mixtral's prefill in chunks of
4096 tokens took 7.4 ms a layer on an H200 where 5.1 were predicted without."""
LOGITS_BYTES, LOGIT_BYTES = 12, 4
"""Moved for each logit beside its product: to float32, and read again for the next token. The size of one."""
EAGER_PASSES = 6
"""Reads and writes of attention scores that are not fused: product, mask (2), softmax (2), product."""

_Pieces = tuple[Piece, Piece, Piece, Piece]
"""Of a layer: all but attention; unpacking weights; one sequence's attention on the compute device, and on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeCost:
    """The formulas for one model and choice on one machine."""

    model: ModelSpec
    choice: Choice
    compute_tier: Tier
    rates: Rates
    rows: float
    """Sequences of a gpu batch, on average."""
    _known: dict[tuple[int, int, Step], _Pieces] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _of_batches: dict[tuple[int, Phase, float], tuple[Piece, Piece]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def layer(self, layer: LayerSpec, held: Held[A], step: Step) -> Compute[A]:
        """The compute tasks of one pass of one layer."""
        linear, unpacking, row, far = self._pieces(layer, held.kept_tokens, step)
        is_decode = step.phase == "decode"
        attended = held.attended_rows * float(is_decode)
        near = held.near_rows + held.attended_rows * float(not is_decode)
        num_attends = held.counts.attended_cache * float(is_decode)
        issue_s = held.batches * linear.issue_s + held.passes * unpacking.issue_s
        num_parts = num_attends + held.counts.split_cache * float(is_decode)
        exchange_s = EXCHANGE_OPERATIONS * self.rates.operation_s + BESIDE_ATTENTION * linear.issue_s
        issue_s = issue_s + num_parts * self._task_s + num_attends * exchange_s
        first_issue_s = linear.issue_s
        if self.rates.graph_s is not None and is_decode:
            later, replayed_s = 1 - step.eager, (self._task_s + self.rates.graph_s) / held.num_joined
            saved_s = (linear.issue_s - replayed_s) * held.replayed * later
            saved_s += self._task_s * (1 - 1 / held.num_joined) * held.replayed * step.eager
            first_issue_s -= saved_s
            capture_s = self.rates.capture_s * graph_operations(self.model, layer)
            issue_s = issue_s + held.num_graphs * (capture_s * step.captured)
            issue_s = issue_s + held.batches * -saved_s
            saved_s = exchange_s - self.rates.graph_s  # the rest of the layer is a graph of its own
            issue_s = issue_s + held.graphed_attended * (-saved_s * later)
        return Compute(
            count=held.batches * (1 / held.num_joined if is_decode else 1.0),
            linear_s=held.batches * self.seconds(linear, step.phase)
            + held.passes * self.seconds(unpacking, UNPACK)
            + attended * self._carried_s,
            first_s=held.passes * max(self.seconds(linear, step.phase), first_issue_s),
            issue_s=issue_s * float(not self.rates.on_cpu),
            near_s=near * self.seconds(row, TaskKind.ATTEND if is_decode else step.phase),
            attend_s=attended * (far.seconds * self.rates.factor("cpu", TaskKind.ATTEND))
            + num_attends * self.rates.task_overhead_s,
            attend_count=num_attends,
            num_parts=num_parts,
            flops=held.batches * linear.flops + near * row.flops,
            num_bytes=held.batches * linear.num_bytes
            + held.passes * unpacking.num_bytes
            + near * row.num_bytes,
            attend_bytes=attended * far.num_bytes,
        )

    def _pieces(self, layer: LayerSpec, kept: int, step: Step) -> _Pieces:
        """What does not depend on what is held, alike ones computed once."""
        key, new = (id(layer), kept, step), (id(layer), step.phase, step.num_new)
        if new not in self._of_batches:  # whatever the tokens attended to
            self._of_batches[new] = self._linear(layer, step), self._dequantise(layer)
        if key not in self._known:
            attention = self._attention(step, kept), self._cpu_attention(step, kept)
            self._known[key] = *self._of_batches[new], *attention
        return self._known[key]

    def seconds(self, piece: Piece, kind: str) -> float:
        """Calibrated as this kind of compute; a CPU that computes does what the host must do in its own time."""
        own = piece.issue_s if self.rates.on_cpu else 0.0
        return piece.seconds * self.rates.factor(self.compute_tier, kind) + own

    def ends(self, step: Step, replayed: float) -> tuple[Piece, Piece]:
        """One gpu batch's embedding, and its head; `replayed`: the share of gpu batches that replay both in decode."""
        embedding, head = self.embedding(step), self.head()
        if step.phase == "prefill" or self.rates.graph_s is None or not replayed:
            return embedding, head
        proven = self._replayed_end(embedding, step, replayed, step.eager + step.captured)
        return proven, self._replayed_end(head, step, replayed, step.eager)

    def _replayed_end(self, piece: Piece, step: Step, share: float, num_calls: float) -> Piece:
        """Called as long as layers are, the embedding once more: to prove its graph."""
        rates = self.rates
        capture_s = rates.capture_s * OPERATIONS_OF_END * step.captured
        replay_s = self._task_s + (rates.graph_s or 0.0) + REPLAY_OPERATIONS * rates.operation_s
        issue_s = piece.issue_s * num_calls + capture_s + replay_s * (1 - step.eager)
        return replace(piece, issue_s=(1 - share) * piece.issue_s + share * issue_s)

    def embedding(self, step: Step) -> Piece:
        """The hidden states of one gpu batch's new tokens, read from a table and written; not so on later stages."""
        if not self.model.has_embedding:
            return self._host_time(OPERATIONS_OF_END, 1)
        hidden = self.rows * step.num_new * self.model.hidden_size * self._element_bytes
        return total([self._written(2.0 * hidden, hidden), self._host_time(OPERATIONS_OF_END, 1)])

    def head(self) -> Piece:
        """Final norm, head and sampling of one gpu batch; only a sequence's last token goes through them."""
        if not self.model.has_head:
            return NOTHING
        batch, numel = self.rows, self.model.head_numel
        count = batch * self.model.vocab_size
        logits = self._written(float(LOGITS_BYTES) * count, float(LOGIT_BYTES) * count)
        return total(
            [
                self._product(
                    batch, 2.0 * batch * numel, numel, (self.model.vocab_size, self.model.hidden_size)
                ),
                logits,
                self._host_time(OPERATIONS_OF_END, 1),
            ]
        )

    def _host_time(self, operations: int, num_calls: int) -> Piece:
        """Calling modules of so many operations, as one task."""
        rates = self.rates
        calls = num_calls * (rates.call_s + operations * rates.operation_s)
        around_s = 0.0 if rates.on_cpu else AROUND_CALLS * rates.small_layer_s
        return Piece(0.0, issue_s=calls + around_s + self._task_s)

    @property
    def _task_s(self) -> float:
        """Of any compute task, whatever it calls."""
        calls = ENGINE_CALLS if self.rates.on_cpu else TASK_CALLS
        return calls * self.rates.small_layer_s + self.rates.task_overhead_s

    @property
    def _element_bytes(self) -> int:
        return DTYPE_BYTES[self.model.dtype]

    def _linear(self, layer: LayerSpec, step: Step) -> Piece:
        """Everything but attention, for one gpu batch; prefill goes through it in chunks of prefill_rows."""
        batch = self.rows
        chunks = math.ceil(batch / self.choice.prefill_rows) if step.phase == "prefill" else 1
        tokens = batch * step.num_new / chunks
        hit = experts_hit(layer, tokens)
        counted = elementwise(self.model, layer)
        own = [
            self._written(tokens * moved.token_bytes, tokens * moved.row_bytes, moved.num_results)
            for moved in counted.moved
        ]
        products = self._products(layer, tokens, hit)
        called = self._host_time(counted.operations, chunks)
        kernels = Piece(self.rates.kernel_s * graph_operations(self.model, layer))
        parts = [total([*products, *own, kernels]) * chunks, called]
        return total([*parts, self._kernel_starts(step, chunks)])

    def _kernel_starts(self, step: Step, chunks: int) -> Piece:
        """Host time of what a GPU is asked for beside a layer's own operations: attention, packing K and V."""
        rates = self.rates
        if rates.on_cpu:
            return NOTHING
        calls = (step.phase == "decode") + (self.choice.kv_bits == 4)
        kernels_s = calls * rates.packed.issue_s if rates.packed else 0.0
        prompt_s = PROMPT_CALLS * rates.small_layer_s * (step.phase == "prefill")
        return Piece(0.0, issue_s=chunks * (kernels_s + prompt_s))

    def _products(self, layer: LayerSpec, tokens: float, hit: float) -> Iterable[Piece]:
        """The matrices all tokens go through, and the experts that are hit, each with its share of tokens."""
        expert_flops = 2.0 * layer.expert_numel * layer.experts_per_token / max(1, layer.num_experts)
        dense_flops = tokens * (layer.linear_flops_per_token - expert_flops)
        dense_numel = layer.numel - layer.expert_numel
        for shape, share in matrices(layer):
            yield self._product(tokens, share * dense_flops, share * dense_numel, shape)
        if layer.num_experts:
            used, rows = layer.expert_numel * hit / layer.num_experts, tokens * layer.experts_per_token / hit
            flops = tokens * expert_flops
            experts = total(
                [
                    self._product(rows, share * flops, share * used, shape)
                    for shape, share in expert_matrices(layer)
                ]
            )
            if not self.rates.on_cpu:
                share = BY_EXPERT_SHARE if is_large_expert(layer, tokens) else GROUPED_SHARE
                experts = replace(experts, seconds=experts.seconds / share)
            yield experts

    def _product(self, rows: float, flops: float, numel: float, shape: Shape) -> Piece:
        """Products of `rows` rows with matrices of this shape: bound by FLOP or by reading them."""
        read = numel * self._element_bytes
        seconds = max(flops / self._flops_per_s(rows, shape), read / self.rates.memory_bytes_per_s)
        return Piece(seconds, flops, read)

    def _flops_per_s(self, rows: float, shape: Shape) -> float:
        """A GPU's rate is that of one matrix of this size, a host's that of a layer's, and of so many outputs."""
        outputs, inputs = shape
        if self.rates.on_cpu:
            return self.rates.product_flops_per_s(rows, self.model.hidden_size, output_weight(outputs))
        return self.rates.product_flops_per_s(rows, math.sqrt(outputs * inputs))

    def _in_memory(self, touched: float) -> Piece:
        """Work that only reads and writes memory."""
        return Piece(touched / self.rates.memory_bytes_per_s, 0.0, touched)

    def _written(self, touched: float, result_bytes: float, num_results: float = 1.0) -> Piece:
        """Elementwise work, whose results are so many new tensors of this size."""
        new_s = num_results * self.rates.new_tensor_s(result_bytes)
        return Piece(self.rates.elementwise_s(touched) + new_s, 0.0, touched)

    def _dequantise(self, layer: LayerSpec) -> Piece:
        """Unpacking a layer's 4-bit weights, once a pass."""
        if self.choice.weight_bits == 16:
            return NOTHING
        found = [tensor.numel for tensor in layer.tensors if tensor.quantizable]
        return unpacked(sum(found), 1, *self._conversion)

    def _attention(self, step: Step, kept: int) -> Piece:
        """One sequence's attention on the compute device; half of the pairs where the mask is causal."""
        model, rates = self.model, self.rates
        context = step.context if step.phase == "prefill" else step.attended(kept)
        pairs = 0.5 * step.num_pairs if step.phase == "prefill" else context
        flops = 4.0 * pairs * model.num_heads * model.head_dim
        read = self._kv_bytes(context)
        flops_per_s = rates.prompt_attention_flops_per_s if step.phase == "prefill" else rates.gemm.best
        scores = 0.0 if model.cpu_attention else EAGER_PASSES * model.num_heads * self._element_bytes * pairs
        values = 2.0 * context * model.kv_dim
        reads_packed = rates.packed.attend if rates.packed and step.phase == "decode" and not scores else None
        if self.choice.kv_bits == 4 and reads_packed:
            seconds = values / reads_packed
            seconds += (
                self._further_heads(seconds, read / rates.attention_bytes_per_s) if rates.on_cpu else 0.0
            )
            attention = Piece(seconds, flops, values * PACKED_BYTES)
            return total([attention, self._packed_cache(step, kept)])
        read_s = read / rates.attention_bytes_per_s
        read_s += self._further_heads(None, read_s) if rates.on_cpu else 0.0
        attention = Piece(max(flops / flops_per_s, read_s), flops, read)
        conversions = self._packed_cache(step, kept), self._unpacked_cache(step, kept)
        return total([attention, self._in_memory(scores), *conversions])

    @property
    def _carried_s(self) -> float:
        """Of one sequence that the CPU attends for a GPU: kernels carry its queries, and bring back what came of them.

        Both in float32, over the link, at what it gives at best: there is no copy to set up.
        """
        if self.rates.on_cpu:
            return 0.0
        row_bytes = self.model.num_heads * self.model.head_dim * DTYPE_BYTES["float32"]
        return row_bytes / self.rates.d2h.best + row_bytes / self.rates.h2d.best

    def _cpu_attention(self, step: Step, kept: int) -> Piece:
        """One sequence's decode attention on the CPU; the compute device has packed what is new of K and V."""
        rates, attended = self.rates, step.attended(kept)
        values, read = 2.0 * self.model.kv_dim * attended, self._kv_bytes(attended)
        reads_packed = rates.cpu_packed_attention_values_per_s
        read_s = read / rates.cpu_attention_bytes_per_s
        if self.choice.kv_bits == 4 and reads_packed:
            seconds = values / reads_packed
            return Piece(seconds + self._further_heads(seconds, read_s), 0.0, values * PACKED_BYTES)
        attention = Piece(read_s + self._further_heads(None, read_s), 0.0, read)
        if self.choice.kv_bits == 16:
            return attention
        old = 2.0 * self.model.kv_dim * step.loaded(kept)
        return total([attention, unpacked(old, 1, None, self._element_bytes, rates.cpu_memory_bytes_per_s)])

    def _further_heads(self, packed_s: float | None, read_s: float) -> float:
        """Seconds of CPU attention for the query heads beyond one to each head of K and V.

        One takes so long to packed K and V, if they are packed, and to those that are not. Where no profile says more,
        the arithmetic of further ones is taken to be the same whatever K and V are stored as.
        """
        further, share = (
            self.model.num_heads / self.model.num_kv_heads - 1,
            self.rates.packed_query_head_share,
        )
        if packed_s is not None and share is not None:
            return share * further * packed_s
        return self.rates.query_head_share * further * read_s

    def _kv_bytes(self, num_tokens: float) -> float:
        """K and V of one sequence in the model's dtype."""
        return 2.0 * num_tokens * self.model.kv_dim * self._element_bytes

    def _packed_cache(self, step: Step, kept: int) -> Piece:
        """Into 4 bits, of one sequence: what the step adds to the cache."""
        if self.choice.kv_bits == 16:
            return NOTHING
        return packed(2.0 * self.model.kv_dim * step.stored(kept), *self._conversion)

    def _unpacked_cache(self, step: Step, kept: int) -> Piece:
        """Out of 4 bits, of one sequence: what is cached already."""
        if self.choice.kv_bits == 16:
            return NOTHING
        return unpacked(2.0 * self.model.kv_dim * step.loaded(kept), 1, *self._conversion)

    @property
    def _conversion(self) -> tuple[PackedRates | None, int, float]:
        """At which rates the compute device converts values, and of how many bytes, at the memory's rate."""
        return self.rates.packed, self._element_bytes, self.rates.memory_bytes_per_s
