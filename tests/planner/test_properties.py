"""What must hold of any model, machine and policy: limits kept, bounds kept, times that scale with the machine."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.profile import HardwareProfile, load_profile
from planner.lp import Solution, solve
from planner.packed_work import PackedRates
from planner.policy import Policy, Tier
from planner.pricing import price
from planner.problem import Problem
from planner.rate_curve import Curve
from planner.rates import Rates
from planner.request import Request
from planner.search import search
from planner.shortage import explain_shortage
from planner.simulate import simulate
from planner.sizes import Sizes
from tests.planner.problems import (
    MB,
    ON_GPU,
    emulated,
    policy_of,
    problem_of,
    small_gemma2,
    small_mixtral,
    small_opt,
    small_t4,
)
from tests.planner.test_lp import limits, relaxed_of
from tests.planner.test_simulate import cases, splits

GROUPS = 3
"""Of decode passes, as in `relaxed_of`."""
MODELS = {
    "opt": small_opt(),
    "mixtral": small_mixtral(),
    "windows": small_gemma2(),
    "wide": small_opt(3, 2048),
}
GPU_MODELS = {name: MODELS[name] for name in ("opt", "mixtral", "windows")}
TIERS: tuple[Tier, ...] = ("gpu", "cpu", "disk")


def sizes_of(problem: Problem, policy: Policy) -> Sizes:
    placement, _ = problem.place(policy)
    return Sizes(problem.model, problem.workload, policy, placement, problem.target.compute_tier)


def scaled(rates: Rates, factor: float) -> Rates:
    """Everything so many times as fast; the names say what is a rate and what a time."""
    changes: dict[str, object] = {}
    for name in (field.name for field in fields(rates)):
        value = getattr(rates, name)
        if value is None:  # not measured
            continue
        if isinstance(value, Curve):
            changes[name] = replace(value, points=tuple((x, y * factor) for x, y in value.points))
        elif isinstance(value, PackedRates):
            attend = value.attend and value.attend * factor
            faster = {"unpack": value.unpack * factor, "pack": value.pack * factor, "attend": attend}
            changes[name] = replace(value, **faster, issue_s=value.issue_s / factor)
        elif name.endswith("_per_s"):
            changes[name] = value * factor
        elif name.endswith("_s"):
            changes[name] = value / factor
    assert len(changes) >= 16
    return replace(rates, **changes)  # type: ignore[arg-type]


@settings(max_examples=40)
@given(case=cases(), factor=st.sampled_from((0.1, 0.7, 3.0, 100.0)))
def test_a_machine_faster_in_everything(case: tuple[Problem, Policy], factor: float) -> None:
    """All rates times a factor: every phase, every task and the played schedule take that much less."""
    problem, policy = case
    sizes, rates = sizes_of(problem, policy), scaled(problem.rates, factor)
    before, after = price(sizes, problem.rates), price(sizes, rates)
    assert after.throughput_tokens_per_s == pytest.approx(factor * before.throughput_tokens_per_s)
    for slow, fast in ((before.prefill, after.prefill), (before.decode, after.decode)):
        assert fast.seconds == pytest.approx(slow.seconds / factor)
        assert fast.busy_s == pytest.approx({name: busy / factor for name, busy in slow.busy_s.items()})
    assert [t.seconds for t in after.tasks] == pytest.approx([t.seconds / factor for t in before.tasks])
    assert [t.num_bytes for t in after.tasks] == [t.num_bytes for t in before.tasks]
    played = simulate(sizes, problem.rates).seconds
    assert simulate(sizes, rates).seconds == pytest.approx(played / factor, rel=1e-6)


@st.composite
def machines(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """A model and caps in MB, from hardly anything to plenty."""
    model = draw(st.sampled_from(sorted(GPU_MODELS)))
    caps = {
        "gpu": draw(st.integers(100, 400)),
        "cpu": draw(st.integers(90, 600)),
        "disk": draw(st.integers(0, 800)),
    }
    return model, caps


def capped(machine: tuple[str, dict[str, int]], profile: HardwareProfile | None = None) -> Problem:
    model, caps = machine
    found = {tier: size * MB for tier, size in caps.items()}
    return problem_of(GPU_MODELS[model], profile, prompt_len=64, gen_len=8, **found)


def optimum(problem: Problem, batches: int | None, size: int) -> Solution | None:
    """The LP's, which is known not to be there, or takes as long as the cost formulas say of its shares."""
    relaxed = relaxed_of(problem, batches, size=size)
    found = solve(relaxed, limits(problem, relaxed))
    if not isinstance(found, Solution):
        assert found.infeasible, found.reason
        return None
    busiest = sum(max(seconds for _, seconds in time.lanes) for time in relaxed.times(found.shares))
    seconds = relaxed.fixed_seconds(found.shares) + busiest
    assert seconds <= found.seconds_per_sequence * (1 + 1e-6)
    if not found.shares.attended:  # otherwise what waits for the CPU is beside the lanes
        assert seconds == pytest.approx(found.seconds_per_sequence)
    return found


@settings(max_examples=40)
@given(
    machine=machines(),
    batches=st.none() | st.integers(1, 6),
    size=st.integers(1, 24),
    tier=st.sampled_from(TIERS),
    more=st.sampled_from((1.02, 1.3, 4.0)),
)
def test_more_memory_is_never_worse(
    machine: tuple[str, dict[str, int]], batches: int | None, size: int, tier: Tier, more: float
) -> None:
    """What fits still fits, and takes no longer (but for the half percent by which fewer moves are preferred)."""
    model, caps = machine
    before = optimum(capped(machine), batches, size)
    after = optimum(capped((model, caps | {tier: round(caps[tier] * more) + 1})), batches, size)
    if before:
        assert after
        assert after.seconds_per_sequence <= before.seconds_per_sequence * 1.005


@settings(max_examples=40)
@given(
    machine=machines(),
    batches=st.integers(1, 4),
    size=st.integers(1, 12),
    policies=st.lists(
        st.tuples(splits(has_gpu=True), splits(has_gpu=True), st.sampled_from((0.0, 0.5, 1.0))), max_size=12
    ),
)
def test_no_policy_that_fits_beats_the_optimum(
    machine: tuple[str, dict[str, int]], batches: int, size: int, policies: list[tuple[object, object, float]]
) -> None:
    """Placed as whole tensors and rows, added up by the ledger and priced by the formulas: all take as long."""
    problem = capped(machine)
    best = optimum(problem, batches, size)
    for weights, cache, attention in policies:
        policy = policy_of(weights, cache, ON_GPU, size=size, batches=batches, cpu_attention=attention)  # type: ignore[arg-type]
        if problem.fits(policy):
            assert best
            seconds = price(sizes_of(problem, policy), problem.rates, GROUPS)
            per_sequence = (seconds.prefill.seconds + seconds.decode.seconds) / policy.block_size
            assert per_sequence >= best.seconds_per_sequence * 0.995


@settings(max_examples=12)
@given(
    model=st.sampled_from(sorted(MODELS)),
    profile=st.sampled_from(("t4", "emulated", "two cores")),
    gpu=st.integers(60, 500),
    cpu=st.integers(90, 600),
    disk=st.integers(0, 900),
    bits=st.sampled_from(("16", "4", "auto")),
    prompts=st.none() | st.integers(1, 40),
    latency=st.none() | st.sampled_from((0.5, 20.0)),
)
def test_a_plan_keeps_every_limit(
    model: str,
    profile: str,
    gpu: int,
    cpu: int,
    disk: int,
    bits: str,
    prompts: int | None,
    latency: float | None,
) -> None:
    """On any kind of machine: as whole tensors and rows it fits, with the latency asked for; else there is a reason."""
    machine = {"t4": small_t4(), "emulated": emulated(), "two cores": load_profile("two-core")}[profile]
    problem = problem_of(
        MODELS[model],
        machine,
        prompt_len=32,
        gen_len=8,
        num_prompts=prompts,
        gpu=gpu * MB if machine.gpus else None,
        cpu=cpu * MB + machine.host.process_bytes,
        disk=disk * MB,
    )
    request = Request(weight_bits=bits, kv_bits=bits, max_latency_s=latency)  # type: ignore[arg-type]
    plan = search(problem, request)
    if plan is None:
        reason = explain_shortage(problem, request)
        assert "short by" in reason or (latency and "--max-latency" in reason)
        return
    placement, ledger = problem.place(plan.policy)
    assert (placement, ledger) == (plan.placement, plan.ledger)
    assert ledger.shortfalls(problem.target) == {}
    if latency is not None:
        assert plan.prediction.prefill.seconds + plan.prediction.decode.seconds <= latency
