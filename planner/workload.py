"""Workload: how many prompts, how long, and how much to generate."""

from __future__ import annotations

from dataclasses import dataclass

from hwprofiles.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Prompts padded to `prompt_len` tokens, each continued by `gen_len` tokens."""

    prompt_len: int
    gen_len: int
    num_prompts: int | None = None
    """None: as many as the best block size wants."""

    def __post_init__(self) -> None:
        for name in ("prompt_len", "gen_len"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1: set {flag}")
        if self.num_prompts is not None and self.num_prompts < 1:
            raise UserError(f"num_prompts is {self.num_prompts}; give at least one prompt")

    @property
    def max_len(self) -> int:
        """Positions a sequence's cache must hold."""
        return self.prompt_len + self.gen_len
