"""transformers alone: the whole model and its cache on the compute device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.peers.base import Peer


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersSetting:
    """What may be chosen."""

    batch_size: int
    cache: Literal["dynamic", "static"] = "dynamic"
    """With a static cache generate compiles the decode step."""


TRANSFORMERS = Peer(
    name="transformers",
    packages=(),
    worker="benchmarks.peers.workers.transformers",
    setting=TransformersSetting,
    how=(
        "generate with its default attention (SDPA), once as it is and once with a static cache, for which it compiles "
        "the decode step; a whole generation before the timed one, so that compiling and autotuning are not counted"
    ),
)
