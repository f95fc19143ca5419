"""Predict: what a placed policy will take, by simulating it; the closed formula's times stand beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.activity import Activity
from planner.bottleneck import binding_lane
from planner.cost import HOST
from planner.plan import PHASES, Phase, PhasePrediction, Prediction
from planner.pricing import price
from planner.rates import Rates
from planner.sample import thinned
from planner.simulate import phase_times
from planner.sizes import Sizes

_VISITS, _VISITS_IN_SHORT = 800, 300
"""Stops of the zig-zag walk that are played, as far as they suffice: for a plan, and to compare plans."""
_NO_LANES = (HOST, "cpu_mem")
"""Resources that a simulation has no lane for; the formula says how busy they are."""


def predict(sizes: Sizes, rates: Rates) -> Prediction:
    """The prediction for one full block."""
    return _simulated(price(sizes, rates), phase_times(sizes, rates, thinned(sizes, _VISITS)), sizes)


def simulated_in_short(formula: Prediction, sizes: Sizes, rates: Rates) -> Prediction:
    """The closed formula's prediction with times that are simulated: enough to compare plans by."""
    return _simulated(formula, phase_times(sizes, rates, thinned(sizes, _VISITS_IN_SHORT)), sizes)


def finished(compared: Prediction, sizes: Sizes, rates: Rates) -> Prediction:
    """`predict`'s for a plan with `simulated_in_short`'s; nothing is played again where it would be as much."""
    if thinned(sizes, _VISITS) != thinned(sizes, _VISITS_IN_SHORT):
        return predict(sizes, rates)
    played = {
        phase: Activity(now.seconds, busy_s={k: s for k, s in now.busy_s.items() if k not in _NO_LANES})
        for phase, now in ((phase, compared.of(phase)) for phase in PHASES)
    }
    return _simulated(price(sizes, rates), played, sizes)


def _simulated(formula: Prediction, played: Mapping[Phase, Activity], sizes: Sizes) -> Prediction:
    prefill, decode = (simulated_phase(played[phase], formula.of(phase)) for phase in PHASES)
    rate = sizes.policy.block_size * sizes.workload.gen_len / (prefill.seconds + decode.seconds)
    return replace(formula, prefill=prefill, decode=decode, throughput_tokens_per_s=rate)


def as_simulated(formula: Prediction, block: Prediction) -> Prediction:
    """The closed formula's prediction of other blocks of a plan, off by as much as it is for a full block."""
    prefill, decode = (
        replace(now, seconds=now.seconds * block.of(phase).beyond_formula, formula_s=now.seconds)
        for phase, now in ((phase, formula.of(phase)) for phase in PHASES)
    )
    slower = (prefill.seconds + decode.seconds) / formula.seconds
    rate = formula.throughput_tokens_per_s / slower
    return replace(formula, prefill=prefill, decode=decode, throughput_tokens_per_s=rate)


def simulated_phase(activity: Activity, formula: PhasePrediction) -> PhasePrediction:
    """A phase as simulated; what has no lane binds where it is at work for at least as long as any lane."""
    if not activity.busy_s:
        return formula
    without = {
        name: min(formula.busy_s[name], activity.seconds) for name in _NO_LANES if name in formula.busy_s
    }
    busy = {**activity.busy_s, **without}
    binding = max((*without, binding_lane(activity)), key=busy.__getitem__)
    return PhasePrediction(seconds=activity.seconds, busy_s=busy, binding=binding, formula_s=formula.seconds)
