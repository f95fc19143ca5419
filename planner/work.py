"""Work: the amounts that cost formulas take and give; each a number or a linear expression of an LP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from planner.graphs import CAPTURE_PASS
from planner.plan import Phase
from planner.policy import Bits, Policy
from planner.schedule import TaskKind
from planner.workload import Workload

MAX_DECODE_GROUPS = 8


class Amount(Protocol):
    """A number, or a linear expression."""

    def __add__(self, other: Self, /) -> Self: ...
    def __mul__(self, factor: float, /) -> Self: ...


A = TypeVar("A", bound=Amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The discrete part of a policy, fixed while an LP is solved."""

    gpu_batch_size: int
    prefill_rows: int
    weight_bits: Bits
    kv_bits: Bits
    weight_slots: int = 2
    cache_slots: int = 2
    num_waves: int = 1

    @classmethod
    def of(cls, policy: Policy) -> Choice:
        """What a policy chose."""
        return cls(
            gpu_batch_size=policy.gpu_batch_size,
            prefill_rows=policy.prefill_rows,
            weight_bits=policy.weight_bits,
            kv_bits=policy.kv_bits,
            weight_slots=policy.weight_slots,
            cache_slots=policy.cache_slots,
            num_waves=policy.num_waves,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One pass over the layers, standing for `num_steps` like it."""

    phase: Phase
    num_new: float
    """Tokens of a sequence that are computed; the mean of its sequences."""
    context: float
    """Tokens attended to, the new ones included; the mean of the passes it stands for."""
    num_steps: float
    spread: float = 0.0
    """Variance of the prompts' lengths in prefill: so many more pairs are attended to than `num_new * context`."""
    share: float = 1.0
    """Of the gpu batches, those it is made for: the others have ended."""
    eager: float = 0.0
    """Of its passes, those that call every layer, and so are not replayed as graphs."""
    captured: float = 0.0
    """Of its passes, those in which layers are captured."""

    def loaded(self, kept: int) -> float:
        """Tokens whose K and V were there before, in a layer that keeps so many."""
        return min(self.context - self.num_new, kept)

    def stored(self, kept: int) -> float:
        """New tokens whose K and V stay in such a layer."""
        return min(self.num_new, kept)

    def attended(self, kept: int) -> float:
        """Tokens whose K and V a new one attends to in such a layer, by way of the cache."""
        return min(self.context, kept)

    @property
    def num_pairs(self) -> float:
        """Of a new token and one it may attend to, for one sequence."""
        return self.num_new * self.context + self.spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts(Generic[A]):
    """How many tasks of a layer's pass there are, by what they move."""

    link_weights: A
    disk_weights: A
    stored_cache: A
    """Gpu batches with rows off the compute tier."""
    streamed_cache: A
    attended_cache: A
    split_cache: A
    """Attended by the CPU in part."""
    disk_cache: A
    moved_activations: A
    disk_activations: A


@dataclass(frozen=True, slots=True, kw_only=True)
class Held(Generic[A]):
    """What one layer holds for a block and moves in a pass; `_token_bytes` are of one token of the rows."""

    passes: A
    """Passes over the layer's weights for one token: 1, or the number of waves, in the unit of the other amounts."""
    batches: A
    replayed: float
    """Of them, the share for which a GPU replays the layer's decode as a graph."""
    num_joined: int
    """Layers that are one task in decode, this one among them."""
    num_graphs: A
    """That are captured for these: one for each slot that the layer's weights or their cache may lie in."""
    graphed_attended: A
    """Of these, those that the CPU attends rows of."""
    cpu_weight_bytes: A
    """On the cpu tier while the compute tier is the GPU."""
    disk_weight_bytes: A
    near_rows: A
    """Attended on the compute device: resident and streamed rows."""
    attended_rows: A
    """Attended on the CPU beside a GPU."""
    streamed_token_bytes: A
    attended_token_bytes: A
    disk_token_bytes: A
    """Of streamed and attended rows that live on disk."""
    kept_tokens: int
    """Of a row: the layer keeps no more."""
    moved_rows: A
    """Activations off the compute tier."""
    disk_rows: A
    """Activations on disk."""
    counts: Counts[A]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move(Generic[A]):
    """All copies of one kind over one resource in one pass of one layer."""

    kind: TaskKind
    resource: str
    count: A
    num_bytes: A


class Timed(NamedTuple, Generic[A]):
    """A move, and its time on its resource."""

    move: Move[A]
    seconds: A


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute(Generic[A]):
    """The compute tasks of one pass of one layer."""

    count: A
    linear_s: A
    """Projections, MLP, norms, dequantising weights."""
    first_s: A
    """What of it no attention on the CPU runs beside: the first gpu batch up to it, the last one after it."""
    issue_s: A
    """The host's time to issue it to a GPU, which goes on meanwhile; a CPU's is in `linear_s`."""
    near_s: A
    """Attention on the compute device."""
    attend_s: A
    """Attention on the CPU, beside other gpu batches' compute."""
    attend_count: A
    num_parts: A
    """Of the compute of gpu batches that the CPU attends rows of, beyond one."""
    flops: A
    num_bytes: A
    """Read and written in the compute device's memory."""
    attend_bytes: A


def steps_of(workload: Workload, max_groups: int = MAX_DECODE_GROUPS) -> list[Step]:
    """Prefill, then the decode passes in groups, each at its mean context."""
    prompt, num_decode = workload.prompt_len, workload.gen_len - 1
    steps = [Step(phase="prefill", num_new=prompt, context=prompt, num_steps=1)]
    groups = min(max_groups, num_decode)
    for index in range(groups):
        first, end = num_decode * index // groups + 1, num_decode * (index + 1) // groups + 1
        mean, passes = prompt + (first + end - 1) / 2, end - first
        eager, captured = max(0, min(end, CAPTURE_PASS + 1) - first), first <= CAPTURE_PASS < end
        steps.append(
            Step(
                phase="decode",
                num_new=1,
                context=mean,
                num_steps=passes,
                eager=eager / passes,
                captured=captured / passes,
            )
        )
    return steps


def step_of(workload: Workload, i: int) -> Step:
    """The one pass of token i."""
    if i == 0:
        return steps_of(workload, 0)[0]
    return Step(
        phase="decode",
        num_new=1,
        context=workload.prompt_len + i,
        num_steps=1,
        eager=float(i <= CAPTURE_PASS),
        captured=float(i == CAPTURE_PASS),
    )
