"""Hugging Face accelerate: a device map, with what does not fit read back module by module for every pass."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from benchmarks.peers.base import Peer


@dataclass(frozen=True, slots=True, kw_only=True)
class AccelerateSetting:
    """What may be chosen."""

    batch_size: int
    gpu_weights: str | None = None
    """A size: what max_memory grants weights on the GPU."""
    cpu_weights: str | None = None
    """A size: what max_memory grants weights in host memory; the rest stays on disk. None: all that is left."""


ACCELERATE = Peer(
    name="accelerate",
    packages=("accelerate",),
    worker="benchmarks.peers.workers.accelerate",
    setting=AccelerateSetting,
    how=(
        "transformers' generate with device_map='auto' and max_memory, one batch of prompts; weights left on disk are "
        "read from the checkpoint's own safetensors, which is faster than accelerate's offload folder. A pass over "
        "the weights costs nearly the same for any batch, so its best is the largest batch that the limit bears: "
        "max_memory leaves the weights on disk, the C library is told to give freed tensors back, and the head's input "
        "is made contiguous (as it is, torch copies the head for every sequence of a prompt's batch). Without these "
        "three it bears fewer sequences. Other batches and other shares of resident weights are in the result too"
    ),
    environment=MappingProxyType({"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}),
)
