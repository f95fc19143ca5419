"""Runs DeepSpeed ZeRO-Inference with random weights."""

from __future__ import annotations

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from benchmarks.peers.base import PeerFigures, PeerJob
from benchmarks.peers.workers.base import dtype_of, figures, serve
from benchmarks.peers.workers.generation import config_of, timed_generate
from benchmarks.peers.zero_inference import ZeroSetting, deepspeed_config
from hwprofiles.yaml_io import from_plain


def run(job: PeerJob) -> PeerFigures:
    """One batch."""
    setting, config = from_plain(job.setting, ZeroSetting, "zero_inference"), config_of(job)
    ours = deepspeed_config(setting, config.hidden_size, job.dtype)
    kept = HfDeepSpeedConfig(ours)  # transformers builds partitioned models for as long as this object lives
    deepspeed.init_distributed()
    model = AutoModelForCausalLM.from_config(config, dtype=dtype_of(job)).eval()
    engine = deepspeed.initialize(model=model, config=ours)[0]
    engine.module.eval()
    device = torch.device(get_accelerator().current_device_name())
    times = timed_generate(engine.module, job, setting.batch_size, device)
    assert kept.is_zero3()
    return figures(setting.batch_size, times, "deepspeed")


if __name__ == "__main__":
    serve(run)
