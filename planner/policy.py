"""Policy: everything the search decides, and the splits it is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hwprofiles.errors import UserError

Tier = Literal["gpu", "cpu", "disk"]
TIERS: tuple[Tier, ...] = ("gpu", "cpu", "disk")
Bits = Literal[4, 16]
"""16: unquantised, in the model's own dtype. 4: groups of 64 with two fp16 constants."""
CommDevice = Literal["cpu", "cuda"]
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The share of some bytes on each tier; fractions that sum to 1."""

    gpu: float
    cpu: float
    disk: float

    def __post_init__(self) -> None:
        for tier, share in self.items():
            if not (math.isfinite(share) and -_TOLERANCE <= share <= 1 + _TOLERANCE):
                raise UserError(
                    f"the share on {tier} is {share:g}; shares lie between 0 and 1 (0 and 100 percent)"
                )
        total = self.gpu + self.cpu + self.disk
        if abs(total - 1) > 1e-4:
            raise UserError(f"a split's shares sum to {total:g} instead of 1 (100 percent)")

    @classmethod
    def on(cls, tier: Tier) -> Split:
        """All of it on one tier."""
        return cls(gpu=float(tier == "gpu"), cpu=float(tier == "cpu"), disk=float(tier == "disk"))

    def items(self) -> Iterator[tuple[Tier, float]]:
        """(tier, share), fastest tier first."""
        yield "gpu", self.gpu
        yield "cpu", self.cpu
        yield "disk", self.disk

    def __str__(self) -> str:
        return " / ".join(f"{100 * share:.4g}" for _, share in self.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How to run a model: batch sizes, where each kind of bytes lives, bits, and who computes attention."""

    gpu_batch_size: int
    """Sequences computed together."""
    num_gpu_batches: int
    """Gpu batches that share one pass of the weights."""
    weights: Split
    """Of the decoder layers; embeddings, final norm and head always live on the compute tier."""
    cache: Split
    activations: Split
    weight_bits: Bits = 16
    kv_bits: Bits = 16
    cpu_attention: float = 0.0
    """Of the cache rows off the compute tier, the share whose decode attention runs on the CPU."""
    prefill_rows: int
    """Sequences of a gpu batch computed at once in prefill; bounds the workspace."""
    weight_slots: int = 2
    """Layers whose streamed weights are held at once: the one computing and those prefetched."""
    cache_slots: int = 2
    graphs: bool = True
    """Whether decode is replayed as CUDA graphs, where it can be."""
    io_threads: int = 4
    attention_threads: int = 1
    stages: int = 1
    num_waves: int = 1
    """Parts of a block that follow one another through a pipeline; gpu batches of one share a pass over the weights."""
    comm_device: CommDevice = "cpu"
    """Where hidden states pass from stage to stage: host memory, or from GPU to GPU."""

    def __post_init__(self) -> None:
        for name in (
            "gpu_batch_size",
            "num_gpu_batches",
            "prefill_rows",
            "io_threads",
            "attention_threads",
            "stages",
            "num_waves",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("weight_slots", "cache_slots"):
            if getattr(self, name) < 2:
                raise UserError(f"{name} is {getattr(self, name)}; at least 2 are needed to overlap")
        if self.weight_bits not in (4, 16) or self.kv_bits not in (4, 16):
            raise UserError(f"weight_bits {self.weight_bits}, kv_bits {self.kv_bits}: each must be 16 or 4")
        if self.num_waves > self.num_gpu_batches:
            raise UserError(
                f"num_waves is {self.num_waves}, there are {self.num_gpu_batches} gpu batches; "
                "a wave has at least one"
            )
        if not 0 <= self.cpu_attention <= 1:
            raise UserError(f"cpu_attention is {self.cpu_attention}; it is a share between 0 and 1")

    @property
    def block_size(self) -> int:
        """Sequences that are generated together; without a pipeline they share one pass of the weights."""
        return self.gpu_batch_size * self.num_gpu_batches
