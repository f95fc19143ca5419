"""Allocations: everything of size that a plan holds, allocated once and given back together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from executor.activations import ActivationHomes
from executor.arena import Arena
from executor.cache import CacheHomes
from executor.disk import DiskStore
from executor.layer_compute import LayerCompute
from executor.messages import Mail, MessageSlots, lanes_on_device
from executor.transfer import Delay, make_streams
from executor.transport import Transport
from executor.weight_slots import WeightSlots
from executor.weights import WeightHomes
from planner.plan import Plan
from planner.shape import shape_of
from planner.sizes import IDS_KEPT, Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How to play a plan, beside the plan itself."""

    device: torch.device
    offload_dir: Path | None = None
    overlap: bool = True
    transport: Transport | None = None
    """To the other stages of a pipeline."""
    delay: Delay | None = None
    """Holds tasks back at random; for tests."""


class Allocations:
    """Homes, slots and buffers of a plan on their tiers, and the streams of its lanes."""

    def __init__(self, plan: Plan, options: EngineOptions) -> None:
        self.plan, self.options = plan, options
        spec, device = plan.model.spec(), options.device
        self.sizes = Sizes(spec, plan.workload, plan.policy, plan.placement, plan.hardware.compute_tier)
        self.streams = make_streams(device, lanes_on_device(shape_of(self.sizes).place, self.sizes.messages))
        self.store: DiskStore | None = None
        self._closers: list[Callable[[], None]] = []
        try:
            self._allocate(device)
        except BaseException:
            self.close()
            raise

    def _allocate(self, device: torch.device) -> None:
        plan, options = self.plan, self.options
        if plan.ledger.peak_bytes("disk"):
            self.store = DiskStore(options.offload_dir or Path.cwd(), threads=plan.policy.io_threads)
            self._closers.append(self.store.close)
        self.homes = WeightHomes(
            self.sizes, compute_device=device, emulated=plan.hardware.emulated, store=self.store
        )
        self._closers.append(self.homes.close)
        self.weights = WeightSlots(self.sizes, self.homes, compute_device=device)
        self._closers.append(self.weights.close)
        self.caches = CacheHomes(self.sizes, compute_device=device, store=self.store)
        self._closers.append(self.caches.close)
        self.activations = ActivationHomes(self.sizes, compute_device=device, store=self.store)
        self._closers.append(self.activations.close)
        self.messages = MessageSlots(self.sizes, compute_device=device)
        self._closers.append(self.messages.close)
        is_gpu = device.type == "cuda"
        self._ids = Arena(self.sizes.token_ids(), torch.device("cpu"), register=is_gpu)
        self._closers.append(self._ids.close)
        self.compute = LayerCompute(
            self.sizes,
            device,
            self.weights,
            self.caches,
            self.activations,
            self.messages,
            has_graphs=plan.hardware.graph_operation_bytes > 0 and plan.policy.graphs,
        )
        self._closers.append(self.compute.close)
        if options.transport:
            self.mail = Mail(self.messages, self.activations, options.transport)

    def token_ids(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[gpu batches, IDS_KEPT, gpu batch size] int64 on the host, and the same as a GPU's kernels see it."""
        shape = -1, IDS_KEPT, self.plan.policy.gpu_batch_size
        both = self._ids.tensor, self._ids.as_kernels_see_it()
        here, there = (ids.view(torch.int64).view(shape) for ids in both)
        return here, there

    def close(self) -> None:
        """Give all memory back and remove the offload files; safe to call twice."""
        while self._closers:
            self._closers.pop()()
