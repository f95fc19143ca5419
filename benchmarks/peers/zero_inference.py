"""DeepSpeed ZeRO-Inference: weights pinned in host memory, gathered layer by layer for every pass."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from benchmarks.peers.base import Peer


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroSetting:
    """What may be chosen."""

    batch_size: int
    pin_weights: bool = True


ZERO_INFERENCE = Peer(
    name="zero_inference",
    packages=("deepspeed==0.19.8", "accelerate"),
    dependencies=("einops", "hjson", "msgpack", "ninja", "py-cpuinfo", "pydantic"),
    worker="benchmarks.peers.workers.zero_inference",
    setting=ZeroSetting,
    how=(
        "ZeRO stage 3 with offload_param on the CPU, pinned, and the prefetch bucket, live parameters and persistence "
        "threshold of DeepSpeed's own ZeRO-Inference example; transformers' generate, one batch. The cache stays on "
        "the GPU and a pass over the weights costs nearly the same for any batch, so its best is the largest batch "
        "that the cap on GPU memory bears"
    ),
    environment=MappingProxyType(
        {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29517",
        }
    ),
)


def deepspeed_config(setting: ZeroSetting, hidden_size: int, dtype: str) -> dict[str, object]:
    """As in DeepSpeedExamples, inference/huggingface/zero_inference/run_model.py."""
    return {
        "fp16": {"enabled": dtype == "float16"},
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": {
            "stage": 3,
            "stage3_prefetch_bucket_size": 2 * hidden_size * hidden_size,
            "stage3_param_persistence_threshold": hidden_size,
            "stage3_max_live_parameters": 2 * hidden_size * hidden_size,
            "offload_param": {"device": "cpu", "pin_memory": setting.pin_weights},
        },
        "steps_per_print": 2000,
        "train_batch_size": setting.batch_size,
        "wall_clock_breakdown": False,
    }
