"""What the first block of a process pays once: libraries choosing kernels, pages touched for the first time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from planner.plan import Phase


class OneTime:
    """When the first block's layers and tokens were done; what the first of them took longer than any other.

    A first layer or pass that is no slower than the slowest of the others is taken to have paid nothing.
    """

    def __init__(self) -> None:
        self._layers: dict[int, float] = {}
        self._tokens: dict[int, float] = {}

    def layer_done(self, j: int, at_s: float) -> None:
        """A gpu batch's layer j of prefill was computed."""
        self._layers[j] = max(at_s, self._layers.get(j, at_s))

    def token_done(self, i: int, at_s: float) -> None:
        """A gpu batch's token i was sampled."""
        self._tokens[i] = max(at_s, self._tokens.get(i, at_s))

    def seconds(self, began_s: float, loads_s: float) -> dict[Phase, float]:
        """Of each phase of the block; of `loads_s`, the loads of all weights, the first layer waits for its own."""
        layers = [began_s, *(at_s for j, at_s in sorted(self._layers.items()) if j >= 0)]
        fill_s = loads_s / max(1, len(layers) - 2)  # beside the start there is the head
        tokens = [at_s for _, at_s in sorted(self._tokens.items())]
        return {"prefill": max(0.0, _excess(layers) - fill_s), "decode": max(0.0, _excess(tokens))}


def _excess(times: Sequence[float]) -> float:
    """How much longer the first step took than the longest of the others; 0 with too few to tell."""
    steps = [later - earlier for earlier, later in pairwise(times)]
    return steps[0] - max(steps[1:]) if len(steps) > 2 else 0.0
