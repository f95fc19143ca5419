"""Heat: a GPU that was idle multiplies faster for about a second, until its clocks come down."""

from __future__ import annotations

from dataclasses import replace

from hwprofiles.points import HEATING_ROWS
from planner.rates import Rates
from planner.sizes import Sizes

_COOL_S = 1.0
"""At work until then a GPU still has an idle one's clocks. With the rate half-way to settled ones, prefills on an H200
of 0.35 and 0.7 s were predicted 6 to 9% too long, those of 1 to 1.5 s 2% too short to 3% too long, longer ones 10% too
short to 1% too long."""


def cooled(rates: Rates, sizes: Sizes) -> Rates:
    """With the rate of products that a block's prefill has on average: of its first second they are faster.

    By `Rates.gemm_swing`; decode cools the GPU before the next block.
    """
    if not rates.gemm_swing:
        return rates
    rows = sizes.policy.prefill_rows * sizes.workload.prompt_len
    tokens = sizes.workload.prompt_len * sum(row.total for row in sizes.placement.cache_rows)
    flops = tokens * sum(layer.linear_flops_per_token for layer in sizes.model.layers)
    seconds = flops / rates.gemm.at(rows)
    saved = rates.gemm_swing * min(_COOL_S, seconds / (1 + rates.gemm_swing))
    factor = seconds / (seconds - saved)
    small = rates.gemm_small and rates.gemm_small.scaled(factor, HEATING_ROWS)
    return replace(rates, gemm=rates.gemm.scaled(factor, HEATING_ROWS), gemm_small=small)
