"""verify: does the plan give the same tokens as the unmodified model under transformers' own generate?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging

from executor.preflight import host_headroom
from executor.sampling import Completion
from executor.verdict import Difference, Verdict
from hwprofiles.errors import UserError
from hwprofiles.units import format_bytes
from planner.layout import DTYPE_BYTES
from planner.plan import ModelRef
from planner.prompts import Request

NEAR_TIE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}
"""Logits closer than this may change places: rounding in another order of summation, by dtype."""
_WORKING_SHARE = 1.2
"""What the reference takes while it generates, as a multiple of its weights."""


class _Generated(Protocol):
    sequences: torch.Tensor
    logits: tuple[torch.Tensor, ...]


class _CanGenerate(Protocol):
    """As much of transformers' GenerationMixin as is used here."""

    def generate(self, ids: torch.Tensor, **options: object) -> _Generated: ...


def reference_model(model_dir: Path, model: ModelRef, device: torch.device) -> PreTrainedModel:
    """The unmodified model, whole: on the compute device if it fits there, else on the CPU.

    Its generation config is emptied, so that a penalty or a temperature that it may hold changes no token.
    A UserError where the host's memory does not hold it.
    """
    needed = round(_WORKING_SHARE * model.spec().weight_bytes(DTYPE_BYTES[model.dtype]))
    name, free = host_headroom()
    if needed > free:
        raise UserError(
            f"verify needs all of {model.name} in host memory at once, {format_bytes(needed)}, "
            f"{format_bytes(free)} is free ({name}); verify on a larger machine, or a smaller model of the family"
        )
    with _no_bar():
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=getattr(torch, model.dtype)
        )
    loaded.generation_config = GenerationConfig()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if needed <= torch.cuda.mem_get_info(device)[0]:
            torch.nn.Module.to(loaded, device)
    loaded.eval()
    return loaded


@contextmanager
def _no_bar() -> Iterator[None]:
    """Transformers shows no progress of its own among ours."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def compare(
    model: PreTrainedModel, dtype: str, completions: Sequence[Completion], eos_ids: frozenset[int]
) -> Verdict:
    """Run the same prompts greedily through transformers, one by one, and find the first differences."""
    found = [_first_difference(model, dtype, completion, eos_ids) for completion in completions]
    return Verdict(
        num_requests=len(completions),
        num_tokens=sum(len(completion.token_ids) for completion in completions),
        differences=tuple(difference for difference in found if difference),
    )


def _first_difference(
    model: PreTrainedModel, dtype: str, completion: Completion, eos_ids: frozenset[int]
) -> Difference | None:
    request = completion.request
    tokens, logits = _generate(model, request, eos_ids)
    for position, (ours, theirs) in enumerate(_aligned(completion.token_ids, tokens)):
        if ours != theirs:
            margin = _margin(logits[position], ours, eos_ids)
            return Difference(
                custom_id=request.custom_id,
                position=position,
                ours=ours,
                reference=theirs,
                margin=margin,
                near_tie=margin <= NEAR_TIE[dtype] and ours not in eos_ids,
            )
    return None


def _margin(logits: torch.Tensor, ours: int | None, eos_ids: frozenset[int]) -> float:
    """How far the reference's logit of our token (None: of the likeliest end-of-sequence) is below its largest."""
    own = sorted(eos_ids) if ours is None else [ours]
    return float(logits.max() - logits[own].max())


def _generate(
    model: PreTrainedModel, request: Request, eos_ids: frozenset[int]
) -> tuple[tuple[int, ...], tuple[torch.Tensor, ...]]:
    """Greedy tokens without the end-of-sequence token, and the logits that each was taken from."""
    ids = torch.tensor([request.prompt_ids], device=model.device)
    output = cast(_CanGenerate, model).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_tokens,
        do_sample=False,
        eos_token_id=sorted(eos_ids) or None,
        pad_token_id=min(eos_ids, default=0),
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = output.sequences[0, ids.shape[1] :].tolist()
    if tokens and tokens[-1] in eos_ids:
        tokens = tokens[:-1]
    return tuple(tokens), tuple(step[0].float() for step in output.logits)


def _aligned(ours: Sequence[int], theirs: Sequence[int]) -> Iterator[tuple[int | None, int | None]]:
    for position in range(max(len(ours), len(theirs))):
        yield (
            ours[position] if position < len(ours) else None,
            theirs[position] if position < len(theirs) else None,
        )
