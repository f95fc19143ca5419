"""Runs accelerate: from a checkpoint with its weights on disk, or with random weights in host memory."""

from __future__ import annotations

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.peers.accelerate import AccelerateSetting
from benchmarks.peers.base import PeerFigures, PeerJob
from benchmarks.peers.workers.base import device_of, dtype_of, figures, serve
from benchmarks.peers.workers.generation import config_of, timed_generate
from hwprofiles.units import parse_bytes
from hwprofiles.yaml_io import from_plain

_PLENTY = "1000GB"
_DEVIATION = 0.02


def run(job: PeerJob) -> PeerFigures:
    """One batch."""
    setting = from_plain(job.setting, AccelerateSetting, "accelerate")
    limits = max_memory(setting)
    model = _from_checkpoint(job, job.checkpoint, limits) if job.checkpoint else _random_weights(job, limits)
    print(f"device map: {model.hf_device_map}")
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return figures(
        setting.batch_size, timed_generate(model, job, setting.batch_size, device_of(job)), "accelerate"
    )


def max_memory(setting: AccelerateSetting) -> dict[int | str, int]:
    """accelerate's limits on weights, by device."""
    limits: dict[int | str, int] = {"cpu": parse_bytes(setting.cpu_weights or _PLENTY)}
    if setting.gpu_weights:
        limits[0] = parse_bytes(setting.gpu_weights)
    return limits


def _from_checkpoint(job: PeerJob, path: str, limits: dict[int | str, int]) -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype_of(job),
        device_map="auto",
        max_memory=limits,
        offload_folder=job.work_dir,
    )
    return found


def _contiguous(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The head's input in one piece: torch would multiply a slice of it by a copy of the head for every sequence."""
    return tuple(argument.contiguous() for argument in arguments)


def _random_weights(job: PeerJob, limits: dict[int | str, int]) -> PreTrainedModel:
    """What a checkpoint would give, without one: what the map puts on the GPU there, the rest in host memory."""
    with init_empty_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config_of(job), dtype=dtype_of(job))
    model.tie_weights()
    places = infer_auto_device_map(
        model, max_memory=limits, no_split_module_classes=model._no_split_modules, dtype=dtype_of(job)
    )
    _fill(model)
    dispatch_model(model, device_map=places, skip_keys=model._skip_keys_device_placement)
    return model


def _fill(model: PreTrainedModel) -> None:
    """Random parameters in place of the empty ones; tied ones stay tied."""
    tile = torch.randn(2**20) * _DEVIATION
    filled: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, empty in module.named_parameters(recurse=False):
            if id(empty) not in filled:
                values = tile.to(empty.dtype).repeat(-(-empty.numel() // tile.numel()))[: empty.numel()]
                filled[id(empty)] = torch.nn.Parameter(values.view(empty.shape), requires_grad=False)
            setattr(module, name, filled[id(empty)])


if __name__ == "__main__":
    serve(run)
