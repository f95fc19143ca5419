"""The relaxed problem: shares of bytes instead of whole tensors and rows; its time and its memory are linear.

Everything is per sequence of the block (the Charnes-Cooper transformation): dividing a block's bytes and
seconds by its size makes the block size a variable, 1/N, and time per sequence the objective. Unlike the
formulas of cost.py, the ledger's are partly products of a share and 1/N; those are linear only where the
number of gpu batches is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from planner.cost import HOST, CostModel
from planner.graphs import MOST_GRAPHS, may_be_replayed, places
from planner.ledger import Entry, make_ledger
from planner.model import LayerSpec
from planner.passes import mean_steps
from planner.piece import Piece
from planner.placement import CacheRows, Placement, TierRows
from planner.plan import PHASES, Phase
from planner.policy import TIERS, Policy, Split, Tier
from planner.problem import Problem
from planner.schedule import TaskKind
from planner.shares import Lanes, LayerKind, MemoryUse, Shares, StepTime, Way, layer_kinds
from planner.sizes import ACTIVATION_SLOTS, WEIGHT_STAGING
from planner.work import A, Choice, Counts, Held, Step, steps_of

_HOMES = ("weights", "cache", "activations")
_ONES: dict[Tier, float] = dict.fromkeys(TIERS, 1.0)
_EVEN = Shares(
    weights=_ONES, cache=_ONES, activations=_ONES, attended=0.0, slot=0.0, inverse_batches=1.0, one=1.0
)
"""A unit of everything on every tier."""


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """Times and memory of one discrete choice; `num_gpu_batches` is None while it is still sought."""

    problem: Problem
    choice: Choice
    num_gpu_batches: int | None
    max_decode_groups: int
    of_longest: bool = False
    """Times are those of a block of the longest prompts, which a limit on latency is for; otherwise of a mean one."""

    @cached_property
    def cost(self) -> CostModel:
        """The formulas."""
        return self.problem.cost_model(self.choice)

    @cached_property
    def compute_tier(self) -> Tier:
        """Where compute runs."""
        return self.problem.target.compute_tier

    @cached_property
    def far_tiers(self) -> tuple[Tier, ...]:
        """Tiers whose bytes must be moved to compute."""
        return ("cpu", "disk") if self.compute_tier == "gpu" else ("disk",)

    @cached_property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The model's layers by what they cost."""
        return layer_kinds(self.problem.model, self.choice.weight_bits, self.problem.workload.max_len)

    @cached_property
    def unit_bytes(self) -> float:
        """The power of ten nearest to what one sequence takes, so that the LP's numbers are near 1."""
        weights = sum(kind.nbytes * kind.count for kind in self.kinds) / self.choice.gpu_batch_size
        return float(10 ** round(math.log10(weights + self._cache_bytes)))

    @cached_property
    def unit_s(self) -> float:
        """The power of ten nearest to a sequence's prefill with all at home on the compute tier."""
        near = {tier: float(tier == self.compute_tier) for tier in TIERS}
        shares = Shares(
            weights={tier: share * self.weight_units for tier, share in near.items()},
            cache={tier: share * self.cache_units for tier, share in near.items()},
            activations={tier: share * self.activation_units for tier, share in near.items()},
            attended=0.0,
            slot=0.0,
            inverse_batches=1.0,
            one=1.0,
        )
        prefill = next(self.times(shares))
        return float(10 ** round(math.log10(max(seconds for _, seconds in prefill.lanes))))

    def seconds(self, shares: Shares[float], way: Way) -> float:
        """Time per sequence by the formulas themselves."""
        total = self.fixed_seconds(shares)
        for time in self.times(shares):
            lanes = (*time.lanes, *time.blocked) if self.is_blocking(way) else time.lanes
            total += max(seconds for _, seconds in lanes)
        return total

    def is_blocking(self, way: Way) -> bool:
        """Whether computing keeps the caller's thread."""
        return way.attends or self.problem.rates.on_cpu

    @cached_property
    def weight_units(self) -> float:
        """All layers."""
        return sum(kind.nbytes * kind.count for kind in self.kinds) / self.unit_bytes

    @cached_property
    def _cache_bytes(self) -> int:
        return self.cost.token_bytes * sum(kind.kept_tokens * kind.count for kind in self.kinds)

    @cached_property
    def _most_kept(self) -> int:
        """Tokens of a sequence that the layer with the most of them keeps."""
        return max(kind.kept_tokens for kind in self.kinds)

    @cached_property
    def _largest_cache_share(self) -> float:
        """That layer's share of all layers' cache."""
        return self.cost.token_bytes * self._most_kept / self._cache_bytes

    @cached_property
    def largest_share(self) -> float:
        """The largest layer's share of all layers' bytes."""
        return max(kind.nbytes for kind in self.kinds) / self.unit_bytes / self.weight_units

    @cached_property
    def steps(self) -> list[Step]:
        """Prefill and the groups of decode passes."""
        workload = self.problem.workload
        if self.of_longest or not workload.lengths:
            return steps_of(workload, self.max_decode_groups)
        return mean_steps(workload.blocks(self.choice.gpu_batch_size, 1), self.max_decode_groups)

    @cached_property
    def cache_units(self) -> float:
        """One sequence's cache in all layers, at its longest."""
        return self._cache_bytes / self.unit_bytes

    @cached_property
    def activation_units(self) -> float:
        """One sequence's hidden states."""
        workload, model = self.problem.workload, self.problem.model
        return workload.prompt_len * model.hidden_size * self.cost.element_bytes / self.unit_bytes

    def times(self, shares: Shares[A]) -> Iterator[StepTime[A]]:
        """Each step's lanes, summed over the layers; the largest lane is the time."""
        all_held = [self._held(shares, kind) for kind in self.kinds]
        for step in self.steps:
            kinds = zip(self.kinds, all_held, strict=True)
            lanes, blocked = zip(*(self._lanes(kind, held, step) for kind, held in kinds), strict=True)
            issued_s = sum(piece.issue_s for piece in self._ends(step)) * step.num_steps
            ends = shares.one * (issued_s / self.choice.gpu_batch_size)
            own = tuple((name, s + ends if name == HOST else s) for name, s in _summed(lanes))
            yield StepTime(step=step, lanes=own, blocked=_summed(blocked))

    def _lanes(self, kind: LayerKind, held: Held[A], step: Step) -> tuple[Lanes[A], Lanes[A]]:
        """The lanes of all layers of a kind in one step, and those that count where computing keeps the caller."""
        moves, compute = self.cost.moves(held, step), self.cost.compute(kind.layer, held, step)
        timed = self.cost.timed(moves, self._speeds(kind, step))
        lanes = self.cost.lanes(timed, compute)
        lanes += self.cost.rounds(timed, compute)
        if self.num_gpu_batches is not None:
            lanes.append((self.compute_tier, self.cost.chain(timed, compute, self.num_gpu_batches)))
        blocked = self.cost.blocked(timed, compute, self.num_gpu_batches)
        times = kind.count * step.num_steps
        first, second = ([(name, seconds * times) for name, seconds in of] for of in (lanes, blocked))
        return first, second

    def fixed_seconds(self, shares: Shares[A]) -> A:
        """What overlaps with nothing, per sequence: the ends of each pass, and the first load of weights."""
        ends = sum(step.num_steps * piece.seconds for step in self.steps for piece in self._ends(step))
        first, kind = self.steps[0], self.kinds[0]
        moves = self.cost.moves(self._held(shares, kind), first)
        total = shares.one * (ends / self.choice.gpu_batch_size)
        for move, seconds in self.cost.timed(moves, self._speeds(kind, first)):
            if move.kind == TaskKind.LOAD_WEIGHT:
                total = total + seconds * (1 / self.choice.num_waves)
        return total

    @cached_property
    def _known_speeds(self) -> dict[tuple[int, int, Step], list[float]]:
        return {}

    def _speeds(self, kind: LayerKind, step: Step) -> list[float]:
        """Speeds of each move at the size of whole layers and gpu batches."""
        key = kind.nbytes, kind.kept_tokens, step
        if key not in self._known_speeds:
            self._known_speeds[key] = self.cost.speeds(self.cost.moves(self._even[key[:2]], step))
        return self._known_speeds[key]

    @cached_property
    def _even(self) -> dict[tuple[int, int], Held[float]]:
        """What each kind of layer holds of a unit of everything on every tier."""
        return {(kind.nbytes, kind.kept_tokens): self._held(_EVEN, kind) for kind in self.kinds}

    def _held(self, shares: Shares[A], kind: LayerKind) -> Held[A]:
        batches = shares.one * (1 / self.choice.gpu_batch_size)
        weights = {tier: amount * (1 / self.weight_units) for tier, amount in shares.weights.items()}
        cache = {tier: amount * (1 / self.cache_units) for tier, amount in shares.cache.items()}
        hidden = {tier: amount * (1 / self.activation_units) for tier, amount in shares.activations.items()}
        attended = shares.attended * (1 / self.cache_units)
        stored, moved = self._far(cache), self._far(hidden)
        streamed = stored + attended * -1.0
        replayed = self._replayed(kind.layer)
        nothing, token, num_waves = shares.one * 0.0, self.cost.token_bytes, self.choice.num_waves
        nbytes = kind.nbytes * num_waves
        return Held(
            passes=shares.inverse_batches * (num_waves / self.choice.gpu_batch_size),
            batches=batches,
            replayed=replayed,
            num_joined=1,
            num_graphs=batches * replayed,
            graphed_attended=attended * (replayed / self.choice.gpu_batch_size),
            cpu_weight_bytes=weights["cpu"] * nbytes if self.compute_tier == "gpu" else nothing,
            disk_weight_bytes=weights["disk"] * nbytes,
            near_rows=shares.one + attended * -1.0,
            attended_rows=attended,
            streamed_token_bytes=streamed * token,
            attended_token_bytes=attended * token,
            disk_token_bytes=cache["disk"] * token,
            kept_tokens=kind.kept_tokens,
            moved_rows=moved,
            disk_rows=hidden["disk"],
            counts=Counts(
                link_weights=self._far(weights) * num_waves,
                disk_weights=weights["disk"] * num_waves,
                stored_cache=stored * (1 / self.choice.gpu_batch_size),
                streamed_cache=streamed * (1 / self.choice.gpu_batch_size),
                attended_cache=attended * (1 / self.choice.gpu_batch_size),
                split_cache=nothing,
                disk_cache=cache["disk"] * (1 / self.choice.gpu_batch_size),
                moved_activations=moved * (1 / self.choice.gpu_batch_size),
                disk_activations=hidden["disk"] * (1 / self.choice.gpu_batch_size),
            ),
        )

    def _ends(self, step: Step) -> tuple[Piece, Piece]:
        """The embedding's and the head's compute for one gpu batch."""
        share = max(self._replayed(kind.layer) for kind in self.kinds)
        return self.cost.ends(step, share if self.problem.model.is_whole else 0.0)

    def _replayed(self, layer: LayerSpec) -> float:
        """Of the gpu batches, the share for which a GPU replays the layer's decode, if all have cache in slots."""
        problem, count = self.problem, self.num_gpu_batches
        if self.compute_tier != "gpu" or count is None:
            return 0.0
        if not may_be_replayed(problem.model, layer, problem.workload, self.choice.gpu_batch_size):
            return 0.0
        num_layers = problem.model.num_layers
        num_places = places(count * num_layers, self.choice.cache_slots)
        return min(1.0, MOST_GRAPHS / (num_places * count * num_layers))

    def _far(self, by_tier: dict[Tier, A]) -> A:
        total = by_tier[self.far_tiers[0]]
        for tier in self.far_tiers[1:]:
            total = total + by_tier[tier]
        return total

    def slots(self, shares: Shares[A]) -> Iterator[A]:
        """What a cache slot must hold, per sequence: rows to store (prefill) or to load (decode)."""
        if self.num_gpu_batches is None:  # as if every row were off the compute tier
            yield shares.inverse_batches * (self.cache_units * self._largest_cache_share)
            return
        largest = self._largest_cache_share / self.num_gpu_batches
        stored = self._far(shares.cache) * largest
        yield stored * (min(self.problem.workload.prompt_len, self._most_kept) / self._most_kept)
        yield stored + shares.attended * -largest

    def memory(self, shares: Shares[A]) -> Iterator[MemoryUse[A]]:
        """What each tier holds in each phase."""
        inverse_block = shares.inverse_batches * (1 / self.choice.gpu_batch_size)
        hidden = shares.inverse_batches * (ACTIVATION_SLOTS * self.activation_units)
        hidden = hidden + shares.one * (self.activation_units / self.problem.workload.prompt_len)
        for tier in TIERS:
            homes = shares.weights[tier] + shares.cache[tier] + shares.activations[tier]
            if tier == self.compute_tier:
                homes = homes + self._slots_used(shares)
            if tier == "gpu" and self.problem.target.mapped_share:
                registered = shares.weights["cpu"] + shares.cache["cpu"] + shares.activations["cpu"]
                homes = homes + (registered + self._staging(shares)) * self.problem.target.mapped_share
            if tier == "cpu":
                homes = homes + self._staging(shares)
            for phase in PHASES:
                fixed, per_sequence = self._other_units(tier, phase)
                used = homes + inverse_block * fixed + shares.one * per_sequence
                slots = hidden if tier == self.compute_tier else hidden * 0.0
                yield MemoryUse(
                    tier=tier, phase=phase, used=used, activation_slots=slots, inverse_block=inverse_block
                )

    def _slots_used(self, shares: Shares[A]) -> A:
        used = self._far(shares.weights) * (self.choice.weight_slots * self.largest_share)
        return used + shares.slot * self.choice.cache_slots

    def _staging(self, shares: Shares[A]) -> A:
        """Host buffers of what passes between disk and the GPU; those of rows, once the batches are fixed."""
        used = shares.one * 0.0
        if self.compute_tier == "gpu":
            used = shares.weights["disk"] * (WEIGHT_STAGING * self.largest_share)
        if self.num_gpu_batches is not None:
            used = used + shares.activations["disk"] * (ACTIVATION_SLOTS / self.num_gpu_batches)
            if self.compute_tier == "gpu":
                slots = self.choice.cache_slots / self.num_gpu_batches
                used = used + shares.cache["disk"] * (slots * self._largest_cache_share)
        return used

    @cached_property
    def _others(self) -> tuple[Entry, ...]:
        """The ledger's entries that no split changes: of one gpu batch with all at home on the compute tier.

        They do not depend on how many layers there are either, so one of each kind will do.
        """
        model = replace(self.problem.model, layers=tuple(kind.layer for kind in self.kinds))
        batch, tier = self.choice.gpu_batch_size, self.compute_tier
        near = Split.on(tier)
        policy = Policy(
            gpu_batch_size=batch,
            num_gpu_batches=1,
            weights=near,
            cache=near,
            activations=near,
            weight_bits=self.choice.weight_bits,
            kv_bits=self.choice.kv_bits,
            prefill_rows=self.choice.prefill_rows,
            weight_slots=self.choice.weight_slots,
            cache_slots=self.choice.cache_slots,
            comm_device=self.problem.pipe.comm_device,
        )
        on_gpu, on_cpu = (batch, 0) if tier == "gpu" else (0, batch)
        placement = Placement(
            weight_tiers=tuple(tier[0] * len(layer.tensors) for layer in model.layers),
            cache_rows=(CacheRows(gpu=on_gpu, cpu=on_cpu, cpu_attend=0, disk=0, disk_attend=0),),
            activation_rows=(TierRows(gpu=on_gpu, cpu=on_cpu, disk=0),),
            weights=near,
            cache=near,
            activations=near,
        )
        ledger = make_ledger(model, self.problem.workload, policy, placement, self.problem.target)
        return tuple(entry for entry in ledger.entries if entry.purpose not in _HOMES)

    def _other_units(self, tier: Tier, phase: Phase) -> tuple[float, float]:
        """(what a block takes whatever its size, what each of its sequences takes).

        The first is at least what loading takes, whose buffers are free again when workspaces are needed.
        """
        fixed = per_sequence = loading = 0.0
        per_sequence_purposes = {"layer arguments"}
        if self.problem.workload.num_prompts is None:
            per_sequence_purposes.add("requests")
        for entry in self._others:
            nbytes = entry.prefill_bytes if phase == "prefill" else entry.decode_bytes
            if entry.tier != tier:
                continue
            loading += entry.loading_bytes / self.unit_bytes
            if entry.purpose in per_sequence_purposes:
                per_sequence += nbytes / self.choice.gpu_batch_size / self.unit_bytes
            else:
                fixed += nbytes / self.unit_bytes
        if tier == self._message_tier:  # beyond the slots that a single gpu batch has
            per_sequence += self.activation_units / self.choice.num_waves
        return max(fixed, loading), per_sequence

    @cached_property
    def _message_tier(self) -> Tier | None:
        """Where a wave of messages may arrive; None on the first stage."""
        if self.problem.model.has_embedding:
            return None
        return self.compute_tier if self.problem.pipe.comm_device == "cuda" else "cpu"


def _summed(kinds: Sequence[Lanes[A]]) -> tuple[tuple[str, A], ...]:
    """Lanes of different layers, added up one by one: prefetching evens out how layers differ."""
    total = kinds[0]
    for lanes in kinds[1:]:
        total = [(name, a + b) for (name, a), (_, b) in zip(total, lanes, strict=True)]
    return tuple(total)
