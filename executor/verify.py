"""verify: does the plan give the same tokens as the unmodified model under transformers' own generate?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from executor.requests import Request
from executor.sampling import Completion

NEAR_TIE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}
"""Logits closer than this may change places: rounding in another order of summation, by dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first token in which a completion departs from the reference."""

    custom_id: str
    position: int
    """Number of the generated token, from 0."""
    ours: int | None
    """None where a completion ended earlier than the other."""
    reference: int | None
    margin: float
    """How much the reference's logit of its own token exceeds that of ours."""
    near_tie: bool
    """The margin is within what rounding alone explains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was compared, and what differed."""

    num_requests: int
    num_tokens: int
    differences: tuple[Difference, ...]

    @property
    def is_same(self) -> bool:
        """No difference that rounding does not explain."""
        return all(difference.near_tie for difference in self.differences)


def reference_model(model_dir: Path, dtype: str, device: torch.device) -> PreTrainedModel:
    """The unmodified model, whole, on the compute device; this needs memory for all of it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype))
    torch.nn.Module.to(model, device)
    return model.eval()


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
    ours = completion.token_ids
    for position, (mine, theirs) in enumerate(_aligned(ours, tokens)):
        if mine != theirs:
            margin = float("inf")
            if position < len(logits):
                own = mine if mine is not None else next(iter(eos_ids), 0)
                margin = float(logits[position].max() - logits[position][own])
            return Difference(
                custom_id=request.custom_id,
                position=position,
                ours=mine,
                reference=theirs,
                margin=margin,
                near_tie=margin <= NEAR_TIE[dtype],
            )
    return None


def _generate(
    model: PreTrainedModel, request: Request, eos_ids: frozenset[int]
) -> tuple[tuple[int, ...], tuple[torch.Tensor, ...]]:
    """Greedy tokens without the end-of-sequence token, and the logits that each was taken from."""
    ids = torch.tensor([request.prompt_ids], device=model.device)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_tokens,
        do_sample=False,
        eos_token_id=sorted(eos_ids) or None,
        pad_token_id=next(iter(sorted(eos_ids)), 0),
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
