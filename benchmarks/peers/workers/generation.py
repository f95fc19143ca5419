"""transformers' own generate, timed token by token; what the peers that build on it share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from transformers import AutoConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from benchmarks.peers.base import PeerJob

_SEED = 0


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What is generated before the timed run, so that kernels are selected and contexts made."""

    prompt_len: int = 32
    gen_len: int = 1


class TokenClock(LogitsProcessor):
    """Notes when each token's logits are there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Called by generate for each token."""
        self.times.append(now(scores.device))
        return scores


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def config_of(job: PeerJob) -> PreTrainedConfig:
    """The job's model for transformers, with no token that ends a sequence."""
    fields = {**job.config, "dtype": job.dtype, "eos_token_id": None}
    return AutoConfig.for_model(str(fields.pop("model_type")), **fields)


def timed_generate(
    model: PreTrainedModel, job: PeerJob, batch_size: int, device: torch.device, warm_up: WarmUp | None = None
) -> list[float]:
    """The seconds of the start, of each token and of the end, of one batch; by default a GPU is warmed up."""
    model.eval()
    warm_up = warm_up or (WarmUp() if device.type == "cuda" else None)
    if warm_up:
        prompts = _prompts(model, batch_size, warm_up.prompt_len, device)
        _generate(model, prompts, warm_up.gen_len, TokenClock())
    clock = TokenClock()
    prompts = _prompts(model, batch_size, job.prompt_len, device)
    began = now(device)
    _generate(model, prompts, job.gen_len, clock)
    return [began, *clock.times, now(device)]


def _prompts(model: PreTrainedModel, rows: int, tokens: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randint(model.config.vocab_size, (rows, tokens), generator=generator).to(device)


def _generate(model: PreTrainedModel, prompts: torch.Tensor, num_tokens: int, clock: TokenClock) -> None:
    generate = cast(Callable[..., object], model.generate)
    with torch.inference_mode():
        generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            logits_processor=LogitsProcessorList([clock]),
        )
