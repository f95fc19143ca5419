"""Heat: a GPU that was idle multiplies faster for its first seconds, until its clocks come down."""

from __future__ import annotations

import math
from dataclasses import replace

from hwprofiles.points import HEATING_ROWS
from planner.rates import Rates
from planner.sizes import Sizes

_WARMS_IN_S = 6.0
"""Of the decay from what a GPU does idle to what it does after long work: on an H200 it fits prefills of 0.35 to
15 s."""


def warmed(rates: Rates, sizes: Sizes) -> Rates:
    """With the rate of products that a block's prefill has on average, which depends on how long it takes.

    Rates are half-way between idle and warm, `Rates.gemm_swing` from either; decode cools it before the next block.
    """
    if not rates.gemm_swing:
        return rates
    rows = sizes.policy.prefill_rows * sizes.workload.prompt_len
    tokens = sizes.workload.prompt_len * sum(row.total for row in sizes.placement.cache_rows)
    flops = tokens * sum(layer.linear_flops_per_token for layer in sizes.model.layers)
    seconds = flops / rates.gemm.at(rows)
    cool = (1 - math.exp(-seconds / _WARMS_IN_S)) * _WARMS_IN_S / seconds if seconds else 1.0
    factor = 1 + rates.gemm_swing * (2 * cool - 1)
    return replace(rates, gemm=rates.gemm.scaled(factor, HEATING_ROWS))
