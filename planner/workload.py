"""Workload: how many prompts, how long, and how much to generate."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from hwprofiles.errors import UserError
from planner.batching import BlockLengths, Lengths, make_blocks

Histogram = tuple[tuple[int, int, int], ...]
"""(prompt tokens, tokens to generate, prompts like that), in the order of a job: longest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Prompts of up to `prompt_len` tokens, each continued by up to `gen_len` tokens."""

    prompt_len: int
    gen_len: int
    num_prompts: int | None = None
    """None: as many as the best block size wants."""
    lengths: Histogram = ()
    """Of every prompt; empty where all are as long as the longest."""
    default_gen_len: int | None = None
    """Of a line of the input that names none; None: `gen_len`."""

    def __post_init__(self) -> None:
        for name in ("prompt_len", "gen_len"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1: set {flag}")
        if self.num_prompts is not None and self.num_prompts < 1:
            raise UserError(f"num_prompts is {self.num_prompts}; give at least one prompt")
        if self.lengths and sum(count for _, _, count in self.lengths) != self.num_prompts:
            raise UserError(f"lengths are not those of {self.num_prompts} prompts; search again with --input")

    @classmethod
    def of_lengths(cls, lengths: Lengths, default_gen_len: int) -> Workload:
        """The workload of prompts of these lengths."""
        counts = sorted(Counter(lengths).items(), reverse=True)
        return cls(
            prompt_len=max(prompt_len for prompt_len, _ in lengths),
            gen_len=max(gen_len for _, gen_len in lengths),
            num_prompts=len(lengths),
            lengths=tuple((prompt_len, gen_len, count) for (prompt_len, gen_len), count in counts),
            default_gen_len=default_gen_len,
        )

    @property
    def max_len(self) -> int:
        """Positions a sequence's cache must hold."""
        return self.prompt_len + self.gen_len

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, padding left out; 0 where their number is open."""
        return sum(prompt_len * count for prompt_len, _, count in self.histogram)

    @property
    def gen_tokens(self) -> int:
        """Of all prompts, at most: sequences may end early; 0 where the number of prompts is open."""
        return sum(gen_len * count for _, gen_len, count in self.histogram)

    @property
    def histogram(self) -> Histogram:
        """The lengths, if need be all alike; empty where the number of prompts is open."""
        if self.lengths or self.num_prompts is None:
            return self.lengths
        return ((self.prompt_len, self.gen_len, self.num_prompts),)

    def blocks(self, gpu_batch_size: int, num_gpu_batches: int) -> Counter[BlockLengths]:
        """The blocks of the job, and how many there are of each; none where the number of prompts is open."""
        size, made = gpu_batch_size * num_gpu_batches, Counter[BlockLengths]()
        histogram = self.histogram
        if len(histogram) == 1 and histogram[0][2] > size:  # no need to write down a million blocks
            prompt_len, gen_len, count = histogram[0]
            alike, rest = divmod(count, size)
            full = Workload(prompt_len=prompt_len, gen_len=gen_len, num_prompts=size)
            made.update(dict.fromkeys(full.blocks(gpu_batch_size, num_gpu_batches), alike))
            histogram = ((prompt_len, gen_len, rest),) if rest else ()
        if histogram:
            prompt_lens, gen_lens, counts = np.array(histogram, dtype=np.int64).T
            job = np.repeat(prompt_lens, counts), np.repeat(gen_lens, counts)
            made.update(make_blocks(*job, gpu_batch_size, num_gpu_batches))
        return made
