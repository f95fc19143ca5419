"""What verify found, and how it says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


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


def verdict_lines(verdict: Verdict, *, is_lossy: bool) -> Iterator[str]:
    """What verify says, the first differences first."""
    for difference in verdict.differences:
        yield _difference_line(difference)
    tokens = f"{verdict.num_requests} prompts, {verdict.num_tokens} tokens"
    if not verdict.differences:
        yield f"same tokens as transformers: {tokens}"
    elif verdict.is_same:
        yield f"same as transformers up to rounding: {tokens}, {len(verdict.differences)} near ties"
    else:
        yield f"different from transformers: {len(verdict.differences)} of {tokens}"
        if is_lossy:
            yield "the plan keeps weights or cache in 4 bits, which is lossy: differences are to be expected"


def _difference_line(difference: Difference) -> str:
    cause = "a near tie" if difference.near_tie else "more than rounding explains"
    return (
        f"{difference.custom_id}: first difference at generated token {difference.position}: "
        f"{_token(difference.ours)} instead of {_token(difference.reference)}, "
        f"logits {difference.margin:.3g} apart ({cause})"
    )


def _token(token: int | None) -> str:
    return "the end" if token is None else str(token)
