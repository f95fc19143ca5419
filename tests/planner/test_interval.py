"""The prediction's interval: around the point, no wider than there is reason for, wider with more spread."""

from __future__ import annotations

import dataclasses
import io
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hwprofiles.points import Rate
from hwprofiles.profile import Calibration, HardwareProfile, load_profile
from planner.advise import estimate
from planner.plan import Interval, Plan, Range, load_plan
from planner.policy import Policy, Split
from planner.render import plan_view
from planner.request import Request
from planner.search import search
from tests.planner.problems import (
    ON_CPU,
    ON_DISK,
    ON_GPU,
    emulated,
    policy_of,
    problem_of,
    small_opt,
    small_t4,
)

T = TypeVar("T")
CPU_ONLY = load_profile("two-core")
POLICIES = {
    "t4": (small_t4(), policy_of(Split(gpu=0.5, cpu=0.5, disk=0), ON_CPU, ON_GPU, cpu_attention=0.5)),
    "t4, disk": (small_t4(), policy_of(ON_DISK, ON_DISK, ON_CPU, weight_bits=4, kv_bits=4)),
    "emulated": (emulated(), policy_of(ON_CPU, ON_CPU, ON_CPU)),
    "cpu": (CPU_ONLY, policy_of(ON_DISK, ON_CPU, ON_CPU)),
}


def with_spreads(value: T, spread: Callable[[Rate], float]) -> T:
    """The same profile, or part of one, with other spreads."""
    if isinstance(value, Rate):
        return dataclasses.replace(value, spread=spread(value))
    if isinstance(value, tuple):
        return tuple(with_spreads(part, spread) for part in value)
    if isinstance(value, Mapping):
        return {key: with_spreads(part, spread) for key, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {
            field.name: with_spreads(getattr(value, field.name), spread)
            for field in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changes)
    return value


def interval_of(profile: HardwareProfile, policy: Policy) -> tuple[Plan, Interval]:
    """A policy's plan on a profile, and its interval."""
    plan = estimate(problem_of(small_opt(), profile, prompt_len=32, gen_len=8), policy)
    assert plan.prediction.interval is not None
    return plan, plan.prediction.interval


def shown(plan: Plan) -> str:
    """What a person reads."""
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(plan_view(plan))
    return console.export_text()


def calibrated(profile: HardwareProfile, error: float, num_folds: int) -> HardwareProfile:
    """The profile after a calibration that changed nothing."""
    calibration = Calibration(
        factors={}, num_runs=5, error_before=error, error_after=error, num_folds=num_folds
    )
    return dataclasses.replace(profile, calibration=calibration)


def ranges(plan: Plan, found: Interval) -> list[tuple[float, Range]]:
    """Each point and its range."""
    prediction = plan.prediction
    return [
        (prediction.prefill.seconds, found.prefill_s),
        (prediction.decode.seconds, found.decode_s),
        (prediction.throughput_tokens_per_s, found.throughput_tokens_per_s),
    ]


@settings(max_examples=15)
@given(
    case=st.sampled_from(sorted(POLICIES)),
    seed=st.randoms(use_true_random=False),
    more=st.floats(1.0, 4.0),
    error=st.none() | st.floats(0.0, 0.3),
)
def test_more_spread_is_never_narrower(
    case: str, seed: random.Random, more: float, error: float | None
) -> None:
    """Whatever the spreads: the point lies within, and each rate that varies more, or an error, only widens."""
    profile, policy = POLICIES[case]
    profile = with_spreads(profile, lambda _: seed.choice((0.0, 0.01, 0.05, 0.3)))
    wider = with_spreads(profile, lambda rate: rate.spread * seed.uniform(1.0, more))
    if error is not None:
        wider = calibrated(wider, error, num_folds=4)
    plan, narrow = interval_of(profile, policy)
    again, wide = interval_of(wider, policy)
    for (point, inner), (same, outer) in zip(ranges(plan, narrow), ranges(again, wide), strict=True):
        assert point == same
        assert 0 < inner.low <= point <= inner.high
        assert outer.low <= inner.low * (1 + 1e-12)
        assert outer.high >= inner.high * (1 - 1e-12)


@pytest.mark.parametrize("case", POLICIES)
def test_no_spread_and_no_error_is_a_point(case: str) -> None:
    """Where every sample was the same and nothing was calibrated, the range has no width."""
    profile, policy = POLICIES[case]
    plan, found = interval_of(with_spreads(profile, lambda _: 0.0), policy)
    assert [(r.low, r.high) for _, r in ranges(plan, found)] == [(p, p) for p, _ in ranges(plan, found)]
    assert found.error is None


@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_all_rates_alike_scale_the_time(spread: float) -> None:
    """If every rate may be a factor off, so may the time: 90% of a normal distribution of that quartile."""
    profile, policy = POLICIES["t4"]
    plan, found = interval_of(with_spreads(profile, lambda _: spread), policy)
    factor = math.exp(1.645 / 0.6745 * spread)
    assert found.prefill_s.high == pytest.approx(plan.prediction.prefill.seconds * factor)
    assert found.decode_s.low == pytest.approx(plan.prediction.decode.seconds / factor)
    rate = plan.prediction.throughput_tokens_per_s
    assert found.throughput_tokens_per_s.low == pytest.approx(rate / factor)


@pytest.mark.parametrize(("num_folds", "counts"), [(0, False), (2, True)])
def test_the_calibrations_error_counts_if_runs_were_held_out(num_folds: int, counts: bool) -> None:
    """With runs of one plan only, the error is that of the fit to itself, which says nothing of other runs."""
    profile, policy = POLICIES["cpu"]
    profile = calibrated(with_spreads(profile, lambda _: 0.0), 0.04, num_folds)
    plan, found = interval_of(profile, policy)
    width = found.decode_s.high / plan.prediction.decode.seconds
    assert width == pytest.approx(math.exp(1.645 / 0.6745 * 0.04) if counts else 1.0)
    assert found.error == (0.04 if counts else None)


def test_a_phase_that_is_not_run_has_no_width() -> None:
    """One generated token leaves no decode."""
    problem = problem_of(small_opt(), CPU_ONLY, prompt_len=32, gen_len=1)
    found = estimate(problem, policy_of()).prediction.interval
    assert found is not None
    assert found.decode_s == Range(low=0.0, high=0.0)
    assert found.prefill_s.high > found.prefill_s.low > 0


def test_published_figures_have_no_range() -> None:
    """Nobody has measured their spread; a range without width is not shown as if it were certainty."""
    plan, found = interval_of(small_t4(), policy_of())
    assert found.throughput_tokens_per_s.low == found.throughput_tokens_per_s.high
    text = shown(plan)
    assert "+0%" not in text
    assert "no spread" in text


def test_a_searched_plan_keeps_its_interval_in_the_file(tmp_path: Path) -> None:
    """It loads back, is shown beside the point, and a plan written before there was one still loads."""
    problem = problem_of(small_opt(), CPU_ONLY, prompt_len=32, gen_len=8, num_prompts=4)
    plan = search(problem, Request())
    assert plan is not None
    assert plan.prediction.interval is not None
    path = tmp_path / "plan.yaml"
    path.write_text(plan.to_yaml())
    assert load_plan(path) == plan
    low = plan.prediction.interval.throughput_tokens_per_s.low
    assert f"{low:,.2f} to " in shown(plan)
    data = yaml.safe_load(plan.to_yaml())
    del data["prediction"]["interval"]
    path.write_text(yaml.safe_dump(data))
    assert load_plan(path).prediction.interval is None
    assert "Throughput" in shown(load_plan(path))
