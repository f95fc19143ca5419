"""Heat: how fast a GPU multiplies in prefills of all lengths, between what it does idle and warm."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from hwprofiles.points import HEATING_ROWS
from hwprofiles.profile import HardwareProfile, load_profile
from planner.heat import warmed
from planner.plan import Plan
from planner.rates import Rates, make_rates
from tests.planner.problems import ON_CPU, ON_GPU, policy_of, problem_of

SWING = 0.08


def h200(swing: float | None) -> HardwareProfile:
    """The shipped host, whose GPU slows down by so much either way of its rates."""
    profile = load_profile("h200-host")
    gpu = profile.gpus[0]
    gemm = {
        dtype: tuple(replace(point, swing=swing if point.rows >= HEATING_ROWS else None) for point in points)
        for dtype, points in gpu.gemm.items()
    }
    return replace(profile, gpus=(replace(gpu, gemm=gemm),))


def plan_of(num_sequences: int, swing: float | None = SWING) -> Plan:
    """So many prompts of 512 tokens through OPT-30B, whose cache is in the host's memory."""
    problem = problem_of("opt-30b", h200(swing), prompt_len=512, gen_len=4)
    return problem.plan(policy_of(ON_GPU, ON_CPU, ON_CPU, size=num_sequences, batches=1, prefill_rows=4))


def rates() -> Rates:
    return make_rates(h200(SWING), "float16")


@pytest.mark.parametrize("count", [4, 4000])
def test_short_prefills_are_idle_and_long_ones_warm(count: int) -> None:
    """Of 0.2 s, and of minutes: within a tenth of the swing of what a burst, or a GPU long at work, would have."""
    own = rates()
    found = warmed(own, plan_of(count).sizes()).gemm.at(4 * 512) / own.gemm.at(4 * 512)
    expected = 1 + SWING if count == 4 else 1 - SWING
    assert found == pytest.approx(expected, abs=SWING / 10)


def test_longer_prefills_are_slower() -> None:
    """Without a jump; few rows, which heat nothing, are as fast in any."""
    own = rates()
    found = [warmed(own, plan_of(count).sizes()) for count in (4, 16, 64, 256, 1024)]
    for shorter, longer in pairwise(found):
        assert longer.gemm.at(4096) < shorter.gemm.at(4096)
        assert longer.gemm.at(256) == own.gemm.at(256)


def test_the_plan_knows() -> None:
    """Formula and simulation have the shorter prefill, by the same share; without a swing nothing is changed."""
    without, short = plan_of(4, None), plan_of(4)
    assert warmed(without.known_rates(), without.sizes()) == without.known_rates()
    for seconds in ("formula_s", "seconds"):
        before, after = (getattr(plan.prediction.prefill, seconds) for plan in (without, short))
        assert 1 < before / after < 1 + SWING
    assert short.prediction.decode.seconds == pytest.approx(without.prediction.decode.seconds)
