"""Runs transformers' generate on the compute device alone, with random weights or a checkpoint's."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.peers.base import PeerFigures, PeerJob
from benchmarks.peers.transformers import TransformersSetting
from benchmarks.peers.workers.base import device_of, dtype_of, figures, serve
from benchmarks.peers.workers.generation import WarmUp, config_of, timed_generate
from hwprofiles.yaml_io import from_plain


def run(job: PeerJob) -> PeerFigures:
    """One batch."""
    setting, device = from_plain(job.setting, TransformersSetting, "transformers"), device_of(job)
    model = _model(job, device)
    if setting.cache == "static":
        model.generation_config.cache_implementation = "static"
    times = timed_generate(
        model, job, setting.batch_size, device, warm_up=WarmUp(job.prompt_len, job.gen_len)
    )
    return figures(setting.batch_size, times, "transformers")


def _model(job: PeerJob, device: torch.device) -> PreTrainedModel:
    if job.checkpoint:
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(job.checkpoint, dtype=dtype_of(job))
        torch.nn.Module.to(loaded, device)
        return loaded
    with device:
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config_of(job), dtype=dtype_of(job))
    return made


if __name__ == "__main__":
    serve(run)
