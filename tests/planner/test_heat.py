"""Heat: how fast a GPU multiplies in prefills of all lengths, between what it does idle and at work."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from hwprofiles.points import HEATING_ROWS, GemmPoint
from hwprofiles.profile import HardwareProfile, load_profile
from planner.heat import cooled
from planner.plan import Plan
from planner.rates import Rates, make_rates
from tests.planner.problems import ON_CPU, ON_GPU, policy_of, problem_of

SWING = 0.08


def h200(swing: float) -> HardwareProfile:
    """The shipped host, whose GPU is so much faster with many rows when it was idle."""
    profile = load_profile("h200-host")
    gpu = profile.gpus[0]
    gemm = {dtype: tuple(_idle(point, swing) for point in points) for dtype, points in gpu.gemm.items()}
    return replace(profile, gpus=(replace(gpu, gemm=gemm),))


def _idle(point: GemmPoint, swing: float) -> GemmPoint:
    if point.rows < HEATING_ROWS:
        return point
    return replace(point, idle_flops_per_s=(1 + swing) * point.flops_per_s.median)


def plan_of(num_sequences: int, swing: float = SWING) -> Plan:
    """So many prompts of 512 tokens through OPT-30B, whose cache is in the host's memory."""
    problem = problem_of("opt-30b", h200(swing), prompt_len=512, gen_len=4)
    return problem.plan(policy_of(ON_GPU, ON_CPU, ON_CPU, size=num_sequences, batches=1, prefill_rows=4))


def rates() -> Rates:
    return make_rates(h200(SWING), "float16")


def test_short_prefills_are_an_idle_gpus() -> None:
    """One of 0.2 s by the whole swing; one of minutes hardly at all."""
    found = {
        count: cooled(rates(), plan_of(count).sizes()).gemm.at(4 * 512) / rates().gemm.at(4 * 512)
        for count in (4, 4000)
    }
    assert found[4] == pytest.approx(1 + SWING)
    assert 1 < found[4000] < 1 + SWING / 50


def test_a_prefill_gains_what_its_first_second_does() -> None:
    """Whatever comes after it: products take SWING seconds less than at the rate."""
    sizes = plan_of(64).sizes()
    flops = 64 * 512 * sum(layer.linear_flops_per_token for layer in sizes.model.layers)
    before, after = flops / rates().gemm.at(4 * 512), flops / cooled(rates(), sizes).gemm.at(4 * 512)
    assert before > 2
    assert before - after == pytest.approx(SWING)


def test_longer_prefills_are_slower() -> None:
    """Without a jump; few rows, which heat nothing, are as fast in any."""
    found = [cooled(rates(), plan_of(count).sizes()) for count in (16, 64, 256, 1024)]
    for shorter, longer in pairwise(found):
        assert longer.gemm.at(4096) < shorter.gemm.at(4096)
        assert longer.gemm.at(64) == rates().gemm.at(64)


def test_older_profiles_know_of_no_heat() -> None:
    """Nor do those of a host that computes."""
    for name in ("h200-host", "t4-host", "two-core"):
        assert make_rates(load_profile(name), "float32").gemm_swing == 0.0


def test_the_plan_knows() -> None:
    """Formula and simulation have the shorter prefill, by the same share; without a swing nothing is changed."""
    without, short = plan_of(4, 0.0), plan_of(4)
    assert cooled(without.known_rates(), without.sizes()) == without.known_rates()
    for seconds in ("formula_s", "seconds"):
        before, after = (getattr(plan.prediction.prefill, seconds) for plan in (without, short))
        assert 1 < before / after < 1 + SWING
    assert short.prediction.decode.seconds == pytest.approx(without.prediction.decode.seconds)
