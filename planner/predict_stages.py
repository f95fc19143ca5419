"""Predict stages: what a pipeline will take, by simulating its stages together; the closed formula stands beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.activity import Activity
from planner.plan import PHASES, Interval, Phase, PhasePrediction, Plan, Prediction, Range
from planner.predict import simulated_phase
from planner.simulate_stages import parts_of, stages_times

_VISITS = 800
"""Stops of the stages' walks that are played, as far as they suffice."""


def simulated(plan: Plan) -> Plan:
    """The plan of a pipeline, priced by the closed formula, with times that are simulated."""
    times = stages_times(parts_of(plan), _VISITS)
    prefill, decode = (_phase(plan, phase, [found[phase] for found in times]) for phase in PHASES)
    tokens = plan.policy.block_size * plan.workload.gen_len
    prediction = replace(
        plan.prediction,
        prefill=prefill,
        decode=decode,
        throughput_tokens_per_s=tokens / (prefill.seconds + decode.seconds),
    )
    interval = plan.prediction.interval
    return replace(
        plan,
        prediction=replace(
            prediction, interval=_around(interval, plan.prediction, prediction) if interval else None
        ),
        job=plan.job.like(prediction) if plan.job else None,
    )


def _phase(plan: Plan, phase: Phase, stages: Sequence[Activity]) -> PhasePrediction:
    """What binds the stage whose binding resource is busiest binds the pipeline."""
    formula = plan.prediction.of(phase)
    found = [
        simulated_phase(activity, stage.prediction.of(phase))
        for activity, stage in zip(stages, plan.stages, strict=True)
    ]
    busiest = max(found, key=lambda each: each.busy_s.get(each.binding, 0.0))
    return replace(busiest, formula_s=formula.seconds)


def _around(interval: Interval, formula: Prediction, found: Prediction) -> Interval:
    """As wide around what is simulated as it is around the formula's."""
    rate = found.throughput_tokens_per_s / formula.throughput_tokens_per_s
    return replace(
        interval,
        prefill_s=_times(interval.prefill_s, found.prefill.beyond_formula),
        decode_s=_times(interval.decode_s, found.decode.beyond_formula),
        throughput_tokens_per_s=_times(interval.throughput_tokens_per_s, rate),
    )


def _times(found: Range, factor: float) -> Range:
    return Range(low=found.low * factor, high=found.high * factor)
