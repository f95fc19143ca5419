"""Heat: a GPU that was idle multiplies faster for its first seconds, until its clocks come down."""

from __future__ import annotations

import math
from dataclasses import replace

from hwprofiles.points import HEATING_ROWS
from planner.rate_curve import Curve
from planner.rates import Rates
from planner.sizes import Sizes

_WARMS_IN_S = 6.0
"""On H200s prefills of 0.35 s were as fast as an idle GPU's bursts, of 1 to 1.5 s a fortieth slower, of 10 s half-way
to what remains when it has been at work for long."""


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
    points = ((x, rate * factor if x >= HEATING_ROWS else rate) for x, rate in rates.gemm.points)
    return replace(rates, gemm=Curve(tuple(points), below=rates.gemm.below))
