"""Interval: how far a prediction may be off, by the profile's own spread and by what calibration could not explain."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwprofiles.points import Dtype
from hwprofiles.profile import HardwareProfile
from planner.plan import PHASES, Interval, PhasePrediction, Prediction, Range
from planner.pricing import price
from planner.rates import Rates, make_rates
from planner.sizes import Sizes

_SPREADS = 1.645 / 0.6745
"""From half of an interquartile range, or from a median error, to either side of 90% of a normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A machine on a slow day and on a fast one, and how far predictions for it were off."""

    slow: Rates
    fast: Rates
    error: float | None
    """Median relative error on runs that the calibration did not see; None where there is none."""


def make_band(profile: HardwareProfile, dtype: Dtype) -> Band:
    """All rates at once at the ends of 90% of their spread."""
    calibration = profile.calibration
    return Band(
        slow=make_rates(profile, dtype, spreads=-_SPREADS),
        fast=make_rates(profile, dtype, spreads=_SPREADS),
        error=calibration.error_after if calibration and calibration.num_folds else None,
    )


def interval(prediction: Prediction, sizes: Sizes, band: Band) -> Interval:
    """The prediction's interval; each side is the spread's and the error's part as two legs of a right angle.

    The closed formula says how much the spread matters.
    """
    error = _SPREADS * (band.error or 0.0)
    ends = [price(sizes, rates) for rates in (band.slow, band.fast)]
    slow, fast = ([_at(end.of(phase), prediction.of(phase)) for phase in PHASES] for end in ends)
    prefill, decode = (
        _around(prediction.of(phase).seconds, slowest, fastest, error)
        for phase, slowest, fastest in zip(PHASES, slow, fast, strict=True)
    )
    block = _around(prediction.seconds, sum(slow), sum(fast), error)
    tokens = prediction.throughput_tokens_per_s * prediction.seconds
    return Interval(
        prefill_s=prefill,
        decode_s=decode,
        throughput_tokens_per_s=Range(
            low=min(prediction.throughput_tokens_per_s, tokens / block.high),
            high=max(prediction.throughput_tokens_per_s, tokens / block.low),
        ),
        error=band.error,
    )


def _at(end: PhasePrediction, now: PhasePrediction) -> float:
    """Seconds of a phase at one end of the band, as far from the closed formula's as they are now."""
    formula_s = now.formula_s or now.seconds
    return now.seconds * (end.seconds / formula_s) if formula_s else 0.0


def _around(seconds: float, slowest: float, fastest: float, error: float) -> Range:
    """Both deviations as logarithms, so that no end is below zero."""
    if not seconds:
        return Range(low=0.0, high=0.0)
    more = math.hypot(math.log(max(slowest, seconds) / seconds), error)
    less = math.hypot(math.log(seconds / min(fastest, seconds)), error)
    return Range(low=seconds * math.exp(-less), high=seconds * math.exp(more))
