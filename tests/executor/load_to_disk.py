"""Loads a checkpoint it writes itself to disk; prints sizes and how much the peak grew. For test_weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from executor import memory
from executor.checkpoint import Checkpoint, named_tensors
from executor.disk import DiskStore
from executor.weights import WeightHomes
from planner.model import ModelSpec, spec_from_config
from planner.placement import CacheRows, Placement, TierRows
from planner.policy import Policy, Split
from planner.sizes import Sizes
from planner.workload import Workload

CONFIG = {
    "model_type": "opt", "dtype": "float16", "vocab_size": 2048, "hidden_size": 1024, "ffn_dim": 4096,
    "num_hidden_layers": 24, "num_attention_heads": 16, "max_position_embeddings": 128,
    "word_embed_proj_dim": 1024,
}  # fmt: skip


def write_checkpoint(directory: Path, spec: ModelSpec) -> int:
    """A sparse file with a safetensors header; its size in bytes."""
    header, offset = {}, 0
    for name, tensor in named_tensors(spec):
        nbytes = tensor.numel * 2
        header[name] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return offset


def main(directory: Path) -> None:
    """Write, load, print."""
    spec = spec_from_config("big", CONFIG)
    total = write_checkpoint(directory, spec)
    split = Split(gpu=0, cpu=0, disk=1)
    placement = Placement(
        weight_tiers=tuple("d" * len(layer.tensors) for layer in spec.layers),
        cache_rows=(CacheRows(gpu=1, cpu=0, cpu_attend=0, disk=0, disk_attend=0),),
        activation_rows=(TierRows(gpu=1, cpu=0, disk=0),),
        weights=split,
        cache=split,
        activations=split,
    )
    policy = Policy(
        gpu_batch_size=1, num_gpu_batches=1, weights=split, cache=split, activations=split, prefill_rows=1
    )
    sizes = Sizes(spec, Workload(prompt_len=8, gen_len=8), policy, placement, "gpu")
    checkpoint = Checkpoint(directory, spec)
    torch.zeros(1 << 20).half().float()  # what torch's threads take for themselves
    memory.reset_peak()
    before = memory.resident_bytes()
    store = DiskStore(directory, threads=2)
    homes = WeightHomes(sizes, compute_device=torch.device("cpu"), emulated=True, store=store)
    homes.load(checkpoint, lambda _: None)
    grown = memory.peak_resident_bytes() - before
    homes.close()
    store.close()
    print(total, sizes.ends(), max(slabs["disk"].nbytes for slabs in sizes.slabs), grown)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
