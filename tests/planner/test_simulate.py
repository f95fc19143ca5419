"""The simulator: keeps order and dependencies, is never faster than the work, as fast where one lane binds."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.profile import HardwareProfile, load_profile
from planner.contention import NOBODY, Commons, fair_speeds
from planner.policy import Policy, Split
from planner.pricing import price
from planner.problem import Problem
from planner.sample import representative
from planner.schedule import tasks
from planner.shape import shape_of
from planner.simulate import Simulation, simulate
from planner.sizes import Sizes
from tests.planner.problems import (
    ON_CPU,
    ON_DISK,
    ON_GPU,
    emulated,
    policy_of,
    problem_of,
    small_gemma2,
    small_mixtral,
    small_opt,
    small_t4,
)

THIRDS = Split(gpu=0.3, cpu=0.4, disk=0.3)
PROFILES = {"t4": small_t4(), "emulated": emulated(), "two cores": load_profile("two-core")}


def sizes_of(problem: Problem, policy: Policy) -> Sizes:
    placement, _ = problem.place(policy)
    return Sizes(problem.model, problem.workload, policy, placement, problem.target.compute_tier)


def played(problem: Problem, policy: Policy) -> tuple[Sizes, Simulation]:
    sizes = sizes_of(problem, policy)
    return sizes, simulate(sizes, problem.rates)


@st.composite
def splits(draw: st.DrawFn, has_gpu: bool) -> Split:
    """Shares in steps of a tenth."""
    gpu = draw(st.integers(0, 10)) if has_gpu else 0
    cpu = draw(st.integers(0, 10 - gpu))
    return Split(gpu=gpu / 10, cpu=cpu / 10, disk=(10 - gpu - cpu) / 10)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Problem, Policy]:
    """A small model on some machine, and any policy of it."""
    profile: HardwareProfile = PROFILES[draw(st.sampled_from(sorted(PROFILES)))]
    has_gpu = bool(profile.gpus)
    model = draw(st.sampled_from((small_opt(3), small_mixtral(), small_gemma2(5))))
    problem = problem_of(
        model, profile, prompt_len=draw(st.sampled_from((3, 64))), gen_len=draw(st.integers(1, 4))
    )
    policy = policy_of(
        *(draw(splits(has_gpu)) for _ in range(3)),
        size=draw(st.integers(1, 9)),
        batches=draw(st.integers(1, 3)),
        weight_bits=draw(st.sampled_from((4, 16))),
        kv_bits=draw(st.sampled_from((4, 16))),
        cpu_attention=draw(st.sampled_from((0.0, 0.5, 1.0))) if has_gpu else 0.0,
    )
    return problem, replace(policy, weight_slots=draw(st.integers(2, 4)), cache_slots=draw(st.integers(2, 4)))


@settings(max_examples=30)
@given(case=cases())
def test_never_faster_than_the_work(case: tuple[Problem, Policy]) -> None:
    """All that a lane, or what lanes share, has to do fits into the time until the last task is done."""
    _, simulation = played(*case)
    assert simulation.end_s >= max(simulation.work_s.values()) * (1 - 1e-9)
    last_s = simulation.token_ends_s[-1]
    stores = sum(max(0.0, span.stop_s - max(span.start_s, last_s)) for span in simulation.spans)
    assert simulation.seconds + stores >= simulation.end_s * (1 - 1e-9)
    assert simulation.seconds <= simulation.end_s * (1 + 1e-9)


@settings(max_examples=30)
@given(case=cases())
def test_the_order_is_the_schedules(case: tuple[Problem, Policy]) -> None:
    """Every task is played once, after all it depends on, and no lane does two at a time."""
    sizes, simulation = played(*case)
    spans = simulation.spans
    yielded = list(tasks(shape_of(sizes), sizes.workload.gen_len))
    assert Counter(span.id for span in spans) == Counter(task.id for task in yielded)
    stops = {span.id: span.stop_s for span in spans}
    assert all(span.start_s >= stops[dep] * (1 - 1e-12) for span in spans for dep in span.deps)
    lanes = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.id):
        lanes[span.lane].append(span)
    for lane in lanes.values():
        assert all(a.stop_s <= b.start_s for a, b in pairwise(lane))


@settings(max_examples=20)
@given(case=cases())
def test_one_task_costs_what_all_of_its_kind_cost_together(case: tuple[Problem, Policy]) -> None:
    """The closed formula's work by kind is the sum over the tasks; it takes speeds at their mean size."""
    sizes, simulation = played(*case)
    prediction = price(sizes, case[0].rates)
    for task in prediction.tasks:
        found = [
            span
            for span in simulation.spans
            if (span.kind, span.lane) == (task.kind, task.resource)
            and (span.i > 0) == (task.phase == "decode")
        ]
        assert len(found) == task.count
        assert sum(span.num_bytes for span in found) == pytest.approx(task.num_bytes)
    placed = zip(sizes.placement.cache_rows, sizes.placement.activation_rows, strict=True)
    if len(set(placed)) > 1:  # copies of one kind differ in size
        return
    for lane in ("gpu", "cpu", "h2d", "d2h", "disk_read", "disk_write"):
        of_lane = [task for task in prediction.tasks if task.resource == lane]
        total_s, work_s = sum(task.seconds for task in of_lane), simulation.work_s.get(lane, 0.0)
        if lane == "gpu":  # the formula's tasks are each as long as the host takes to ask for them, at least
            assert work_s <= total_s * 1.03
            assert total_s <= (work_s + simulation.work_s.get("host", 0.0)) * 1.03
        else:
            assert work_s == pytest.approx(total_s, rel=0.01)


DOMINATED = {
    "weights over the link": policy_of(ON_CPU, ON_GPU, ON_GPU, size=8, batches=1),
    "cache over the link": policy_of(ON_GPU, ON_CPU, ON_GPU, size=16, batches=4),
    "cache from disk": policy_of(ON_GPU, ON_DISK, ON_CPU, size=16, batches=4),
    "attended by the CPU": policy_of(ON_GPU, ON_CPU, ON_GPU, size=16, batches=4, cpu_attention=1.0),
    "computed": policy_of(ON_GPU, ON_GPU, ON_GPU, size=16, batches=4),
}


@pytest.mark.parametrize("name", DOMINATED)
def test_as_the_closed_formula_where_one_resource_dominates(name: str) -> None:
    """Both phases within 5% of the formula."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=512, gen_len=5)
    policy = DOMINATED[name]
    sizes, simulation = played(problem, replace(policy, prefill_rows=problem.prefill_rows(16)))
    prediction = price(sizes, problem.rates)
    assert simulation.phases["prefill"].seconds == pytest.approx(prediction.prefill.seconds, rel=0.05)
    assert simulation.phases["decode"].seconds == pytest.approx(prediction.decode.seconds, rel=0.05)


def test_waiting_for_slots_shows() -> None:
    """With two cache slots the disk idles while they are stored, which the formula does not see; a third cures it."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=512, gen_len=2)
    policy = policy_of(ON_DISK, ON_DISK, ON_CPU, size=16, batches=4, prefill_rows=problem.prefill_rows(16))
    two, three = (played(problem, replace(policy, cache_slots=slots)) for slots in (2, 3))
    formula_s = price(two[0], problem.rates).prefill.seconds
    assert two[1].phases["prefill"].seconds > 1.05 * formula_s
    assert three[1].phases["prefill"].seconds == pytest.approx(formula_s, rel=0.02)


def test_the_host_runs_ahead_until_it_waits_for_ids() -> None:
    """A slow host asks for decode's first pass while the GPU is at prefill; later passes take as long as its calls."""
    problem = problem_of(small_opt(), prompt_len=512, gen_len=6)
    sizes = sizes_of(problem, policy_of(ON_GPU, ON_GPU, ON_GPU, size=32, batches=1))
    free = simulate(sizes, replace(problem.rates, call_s=0.0, operation_s=0.0, task_overhead_s=0.0))
    slow = simulate(sizes, replace(problem.rates, call_s=4e-4, operation_s=0.0, task_overhead_s=0.0))
    first, second, *others = (b - a for a, b in pairwise(slow.token_ends_s))
    assert first == pytest.approx(free.token_ends_s[1] - free.token_ends_s[0], rel=0.01)
    assert others == pytest.approx([others[0]] * 3)
    assert others[0] > 2 * first
    assert first + second == pytest.approx(others[0], rel=0.05)


def test_parts_of_a_layer_have_their_own_work() -> None:
    """Products before and after, and between them the GPU's own attention of the rows that the CPU leaves it."""
    problem = problem_of(small_opt(), prompt_len=512, gen_len=3)
    sizes = sizes_of(problem, policy_of(ON_GPU, THIRDS, ON_GPU, size=10, batches=2, cpu_attention=1.0))
    simulation = simulate(sizes, problem.rates)
    spans = [s for s in simulation.spans if (s.kind, s.i, s.j, s.k) == ("compute", 2, 0, 0)]
    before, near, after = (span.stop_s - span.start_s for span in spans)
    assert before == pytest.approx(after)
    assert near != pytest.approx(before, rel=0.01)


def test_some_tokens_stand_for_all() -> None:
    """A few decode passes, interpolated, give the time of playing every one."""
    problem = problem_of(small_opt(), prompt_len=64, gen_len=40)
    sizes = sizes_of(problem, policy_of(THIRDS, THIRDS, THIRDS, size=10, batches=3))
    few, everything = representative(sizes, 4), representative(sizes)
    assert (few.tokens, everything.tokens) == ((0, 1, 2, 3, 15, 26, 38, 39), tuple(range(40)))
    sampled, whole = (simulate(sizes, problem.rates, which) for which in (few, everything))
    assert sampled.phases["prefill"].seconds == pytest.approx(whole.phases["prefill"].seconds)
    assert sampled.phases["decode"].seconds == pytest.approx(whole.phases["decode"].seconds, rel=0.01)
    for lane, busy_s in whole.phases["decode"].busy_s.items():
        assert sampled.phases["decode"].busy_s[lane] == pytest.approx(busy_s, rel=0.02)


def test_one_token_has_no_decode() -> None:
    """Prefill alone takes time; nothing divides by zero."""
    problem = problem_of(small_opt(), gen_len=1)
    _, simulation = played(problem, policy_of())
    assert simulation.phases["decode"].seconds == 0
    assert simulation.throughput_tokens_per_s == pytest.approx(8 / simulation.phases["prefill"].seconds)


def test_both_directions_share_the_link() -> None:
    """Where the link does less both ways than each way alone, loads and stores at once take longer."""
    problem = problem_of(small_opt(), prompt_len=256, gen_len=2)
    sizes = sizes_of(problem, policy_of(size=16, batches=4))
    free = replace(problem.rates, both_bytes_per_s=1e15)
    tight = replace(problem.rates, both_bytes_per_s=problem.rates.h2d.best / 2)
    assert simulate(sizes, tight).seconds > 1.2 * simulate(sizes, free).seconds


def test_phase_factors_stretch_a_phase() -> None:
    """A phase's calibration applies to all of its time, spans included."""
    problem = problem_of(small_opt())
    sizes = sizes_of(problem, policy_of())
    plain = simulate(sizes, problem.rates)
    twice = simulate(sizes, replace(problem.rates, factors={"decode": 2.0}))
    assert twice.phases["prefill"].seconds == pytest.approx(plain.phases["prefill"].seconds)
    assert twice.phases["decode"].seconds == pytest.approx(2 * plain.phases["decode"].seconds)


def test_speeds_are_max_min_fair() -> None:
    """Tasks on a full resource get equal speeds, what they leave goes to the others."""
    assert fair_speeds([(0.4,), (0.5,)]) == (1.0, 1.0)
    assert fair_speeds([(1.0,), (1.0,)]) == (0.5, 0.5)
    assert fair_speeds([(0.8, 0.0), (0.8, 0.5), (0.0, 0.5)]) == pytest.approx((0.625, 0.625, 1.0))
    assert fair_speeds([(2.0,)]) == (0.5,)
    assert fair_speeds([]) == ()


def test_what_yields_has_what_others_leave() -> None:
    """And half of its fair speed whatever they want; alone, or beside its like, it is as fast as any."""
    commons = Commons([(0.6,), (0.8,), (3.0,)], yields=[False, True, False])
    assert dict(commons.speeds([0, 1])) == pytest.approx({0: 1.0, 1: 0.5})
    assert dict(commons.speeds([1, 2])) == pytest.approx({0: 0.5 / 3.8, 1: (1 - 0.8 * 0.5 / 3.8) / 3.0})
    assert dict(commons.speeds([1, 1])) == pytest.approx({0: 0.625, 1: 0.625})
    assert dict(commons.speeds([0, NOBODY, 0])) == pytest.approx({0: 1 / 1.2, 2: 1 / 1.2})


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3), st.booleans()), min_size=1, max_size=6))
def test_yielding_overdraws_nothing(kinds: list[tuple[float, float, bool]]) -> None:
    """And nothing stands still."""
    shares, yields = [kind[:2] for kind in kinds], [kind[2] for kind in kinds]
    speeds = [speed for _, speed in Commons(shares, yields=yields).speeds(range(len(kinds)))]
    used = [sum(speed * share[at] for speed, share in zip(speeds, shares, strict=True)) for at in (0, 1)]
    assert all(total <= 1 + 1e-9 for total in used)
    assert all(0 < speed <= 1 for speed in speeds)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=6))
def test_no_shared_resource_is_overdrawn(shares: list[tuple[float, float]]) -> None:
    """Speeds lie between 0 and 1, resources hold, and a task slower than 1 is on a full one."""
    speeds = fair_speeds(shares)
    used = [sum(speed * share[at] for speed, share in zip(speeds, shares, strict=True)) for at in (0, 1)]
    assert all(total <= 1 + 1e-9 for total in used)
    for speed, share in zip(speeds, shares, strict=True):
        assert 0 < speed <= 1
        assert speed > 1 - 1e-9 or any(used[at] > 1 - 1e-9 and share[at] > 0 for at in (0, 1))
