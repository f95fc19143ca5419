"""The next token of every row of a gpu batch, and which rows are finished."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase, TemperatureLogitsWarper, TopPLogitsWarper

from executor.batching import GpuBatch
from executor.stopping import FinishReason, SequenceEnd
from planner.prompts import Request

_GREEDY_BELOW = (
    1e-5  # dividing float32 logits by less overflows, and the largest logit has probability 1 long before
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a request got; token_ids without the end-of-sequence token, text None without a tokenizer."""

    request: Request
    token_ids: tuple[int, ...]
    text: str | None
    finish_reason: FinishReason


class Sampler:
    """Chooses tokens on the compute device and keeps the rows' ends on the host.

    `sample` knows nothing of `accept`: a finished row goes on drawing tokens that `accept` ignores, so the
    two may be any number of steps apart.
    """

    def __init__(
        self,
        batch: GpuBatch,
        *,
        eos_ids: frozenset[int],
        tokenizer: PreTrainedTokenizerBase | None,
        device: torch.device,
    ) -> None:
        self._requests = batch.requests
        self._ends = [SequenceEnd(item, eos_ids=eos_ids, tokenizer=tokenizer) for item in batch.requests]
        self._draws = {
            row: _Draw(request, device)
            for row, request in enumerate(batch.requests)
            if request.temperature >= _GREEDY_BELOW
        }

    def sample(self, logits: torch.Tensor) -> torch.Tensor:
        """Token ids [rows] int64 on the device, from logits [rows, vocab] of the last position.

        A greedy row takes the largest logit; nothing waits for the device when all rows are greedy.
        """
        ids = logits.argmax(dim=-1)
        for row, draw in self._draws.items():
            ids[row : row + 1] = draw.next_id(logits[row : row + 1])
        return ids

    @property
    def is_greedy(self) -> bool:
        """Whether every row takes the largest logit."""
        return not self._draws

    def accept(self, ids: list[int]) -> bool:
        """Append one token to each unfinished row; True while any row is unfinished."""
        for end, token_id in zip(self._ends, ids, strict=True):
            if end.finish_reason is None:
                end.accept(token_id)
        return not all(self.finished)

    @property
    def finished(self) -> tuple[bool, ...]:
        """For each row whether it has ended."""
        return tuple(end.finish_reason is not None for end in self._ends)

    def results(self) -> list[Completion]:
        """One completion a row, in the order of the batch; all rows must be finished."""
        completions = []
        for request, end in zip(self._requests, self._ends, strict=True):
            assert end.finish_reason is not None, f"{request.custom_id} is not finished"
            completions.append(
                Completion(
                    request=request,
                    token_ids=tuple(end.token_ids),
                    text=end.text(),
                    finish_reason=end.finish_reason,
                )
            )
        return completions


class _Draw:
    """Random choice for one row, on its own: neither its numbers nor its generator see the rows beside it."""

    def __init__(self, request: Request, device: torch.device) -> None:
        self._generator = torch.Generator(device=device)
        self._generator.manual_seed(_stable_seed(request.custom_id) if request.seed is None else request.seed)
        self._temperature = TemperatureLogitsWarper(float(request.temperature))
        self._top_p = TopPLogitsWarper(request.top_p) if request.top_p < 1 else None

    def next_id(self, logits: torch.Tensor) -> torch.Tensor:
        """[1] int64 from logits [1, vocab]."""
        no_ids = torch.empty(
            0, dtype=torch.int64, device=logits.device
        )  # the two warpers do not look at them
        scores = self._temperature(no_ids, logits.float())
        if self._top_p is not None:
            scores = self._top_p(no_ids, scores)
        probabilities = scores.softmax(dim=-1)
        return torch.multinomial(probabilities, num_samples=1, generator=self._generator)[0]


def _stable_seed(custom_id: str) -> int:
    """The same 63-bit number in every process, so that a resumed job draws what it would have drawn."""
    return int.from_bytes(hashlib.blake2b(custom_id.encode(), digest_size=8).digest(), "big") >> 1
