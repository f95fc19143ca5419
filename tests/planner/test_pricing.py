"""The cost model: the price of a placed policy, held against the schedule, the layout and published figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from hwprofiles.profile import load_profile
from planner.layout import is_streamed, token_stride
from planner.plan import Plan
from planner.policy import Policy, Split
from planner.pricing import NOT_RUN, price
from planner.problem import Problem
from planner.products import experts_hit
from planner.schedule import Task, TaskKind, tasks
from planner.shape import shape_of
from planner.sizes import Sizes
from planner.task_costs import TaskCosts
from planner.work import steps_of
from planner.workload import Workload
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
)

THIRDS = Split(gpu=0.3, cpu=0.4, disk=0.3)
POLICIES = {
    "all on gpu": policy_of(ON_GPU, ON_GPU, ON_GPU),
    "all on cpu": policy_of(),
    "all on disk": policy_of(ON_DISK, ON_DISK, ON_DISK),
    "three tiers": policy_of(THIRDS, THIRDS, THIRDS, size=10, batches=3),
    "cpu attention": policy_of(ON_CPU, THIRDS, ON_GPU, size=10, batches=2, cpu_attention=0.5),
    "all attended": policy_of(ON_GPU, ON_DISK, ON_GPU, cpu_attention=1.0),
    "4 bit": policy_of(THIRDS, THIRDS, ON_CPU, size=6, batches=1, weight_bits=4, kv_bits=4),
}


def sizes_of(problem: Problem, plan: Plan) -> Sizes:
    return Sizes(problem.model, problem.workload, plan.policy, plan.placement, problem.target.compute_tier)


def predicted(plan: Plan, phase: str, kind: str, resource: str) -> tuple[int, float, float]:
    """(count, bytes, seconds) of one kind of task."""
    found = [t for t in plan.prediction.tasks if (t.phase, t.kind, t.resource) == (phase, kind, resource)]
    return (found[0].count, found[0].num_bytes, found[0].seconds) if found else (0, 0.0, 0.0)


@pytest.mark.parametrize("name", POLICIES)
def test_tasks_are_counted_as_the_schedule_yields_them(name: str) -> None:
    """For every phase, kind and resource the prediction counts the tasks that the executor will play."""
    problem = problem_of(small_opt(), prompt_len=20, gen_len=5)
    plan = problem.plan(POLICIES[name])
    counts = {(t.phase, t.kind, t.resource): t.count for t in plan.prediction.tasks}
    yielded = Counter(
        ("decode" if task.i else "prefill", task.kind.value, task.resource)
        for task in tasks(shape_of(sizes_of(problem, plan)), problem.workload.gen_len)
    )
    assert counts == dict(yielded)


def test_a_cpu_that_computes_has_no_link() -> None:
    """Without a GPU nothing goes over h2d or d2h, and the counts are still the schedule's."""
    problem = problem_of(small_opt(), load_profile("two-core"), prompt_len=20, gen_len=5)
    half = Split(gpu=0, cpu=0.5, disk=0.5)
    plan = problem.plan(policy_of(half, half, half))
    counts = {(t.phase, t.kind, t.resource): t.count for t in plan.prediction.tasks}
    yielded = Counter(
        ("decode" if task.i else "prefill", task.kind.value, task.resource)
        for task in tasks(shape_of(sizes_of(problem, plan)), 5)
    )
    assert counts == dict(yielded)


def test_bytes_are_the_layouts() -> None:
    """Weights, cache and activations move the bytes of their slabs, rows and hidden states, pass by pass."""
    problem = problem_of(small_opt(), prompt_len=20, gen_len=5)
    plan = problem.plan(POLICIES["three tiers"])
    sizes, layers = sizes_of(problem, plan), problem.model.num_layers
    streamed = sum(sizes.streamed(j) for j in range(layers))
    assert predicted(plan, "decode", "load_weight", "h2d")[1] == pytest.approx(4 * streamed)
    row_token = sum(
        token_stride(group, count, sizes.vector_bytes)
        for rows in plan.placement.cache_rows
        for group, count in rows.counts()
        if count and is_streamed(group, "gpu")
    )
    cached = sum(20 + i - 1 for i in range(1, 5))
    assert predicted(plan, "decode", "load_cache", "h2d")[1] == pytest.approx(layers * row_token * cached)
    assert predicted(plan, "prefill", "store_cache", "d2h")[1] == pytest.approx(layers * row_token * 20)
    moved = sum(rows.total - rows.gpu for rows in plan.placement.activation_rows)
    hidden = layers * moved * 20 * problem.model.hidden_size * 2
    assert predicted(plan, "prefill", "store_activation", "d2h")[1] == pytest.approx(hidden)


def test_what_a_window_streams_stops_growing() -> None:
    """A layer with a window of 40 loads what is cached, up to 40 tokens; one without goes on growing."""
    problem = problem_of(small_gemma2(window=40), prompt_len=30, gen_len=30)
    sizes = sizes_of(problem, problem.plan(policy_of(size=4, batches=1)))
    loads = [task for task in tasks(shape_of(sizes), 30) if task.kind is TaskKind.LOAD_CACHE]
    costs, token = TaskCosts(sizes, problem.rates), 4 * 2 * sizes.vector_bytes

    def loaded(task: Task) -> float:
        return costs.load(task, task.i, ((task.j, 1.0),)).num_bytes / token

    for j, most in ((0, 40), (1, 60), (2, 40)):
        assert [loaded(task) for task in loads if task.j == j] == [min(most, 29 + i) for i in range(1, 30)]


def test_a_window_that_fills_amid_decode_is_priced_within_a_hundredth() -> None:
    """Passes are priced in groups at their mean; the one in which the window fills is a little off."""
    for window in (40, 101, 150, 285):
        problem = problem_of(small_gemma2(window), prompt_len=100, gen_len=200)
        plan = problem.plan(policy_of(size=4, batches=1))
        token = 4 * 2 * sizes_of(problem, plan).vector_bytes
        exact = sum(3 * min(window, 99 + i) + 2 * (99 + i) for i in range(1, 200)) * token
        assert predicted(plan, "decode", "load_cache", "h2d")[1] == pytest.approx(exact, rel=0.01)


def test_decode_is_integrated_not_sampled_in_the_middle() -> None:
    """Groups of passes stand for all of them: their cached tokens add up to every pass's."""
    for gen_len in (1, 2, 9, 10, 33):
        steps = [s for s in steps_of(Workload(prompt_len=100, gen_len=gen_len)) if s.phase == "decode"]
        assert sum(step.num_steps for step in steps) == gen_len - 1
        contexts = sum(step.context * step.num_steps for step in steps)
        assert contexts == pytest.approx(sum(100 + i for i in range(1, gen_len)))


def test_one_token_leaves_no_decode() -> None:
    """A phase that does not run takes no time, binds nothing, and makes no figure nan."""
    plan = problem_of(small_opt(), gen_len=1).plan(policy_of())
    decode = plan.prediction.decode
    assert (decode.seconds, decode.binding, dict(decode.busy_s)) == (0.0, NOT_RUN, {})
    assert plan.prediction.throughput_tokens_per_s == pytest.approx(8 / plan.prediction.prefill.seconds)


def test_a_phase_takes_at_least_its_busiest_resource() -> None:
    """No lane is busy for longer than the phase."""
    for policy in POLICIES.values():
        plan = problem_of(small_opt()).plan(policy)
        for phase in (plan.prediction.prefill, plan.prediction.decode):
            assert max(phase.busy_s.values()) <= phase.seconds * (1 + 1e-9)
            assert phase.binding in phase.busy_s


def test_small_decode_batches_are_bound_by_gpu_memory() -> None:
    """Reading the weights takes the time of a decode pass with one row, not its FLOP."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=8, gen_len=9)
    plan = problem.plan(policy_of(ON_GPU, ON_GPU, ON_GPU, size=1, batches=1, prefill_rows=1))
    rates = problem.rates
    reading = 8 * problem.model.weight_bytes(2) / rates.memory_bytes_per_s
    assert 0.99 * reading < plan.prediction.decode.seconds < 1.25 * reading


def test_loads_and_compute_overlap() -> None:
    """A streamed decode takes about as long as its link is busy, not the sum of link and GPU."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=512, gen_len=9)
    decode = problem.plan(policy_of(size=16, batches=2)).prediction.decode
    assert decode.binding == "h2d"
    assert decode.seconds < 1.05 * decode.busy_s["h2d"]


def test_four_bits_are_four_and_a_half() -> None:
    """With groups of 64 and two constants 4-bit weights take 4.5 / 16 of their bytes over the link."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"))
    full = predicted(problem.plan(policy_of()), "decode", "load_weight", "h2d")[1]
    packed = predicted(problem.plan(policy_of(weight_bits=4)), "decode", "load_weight", "h2d")[1]
    assert packed / full == pytest.approx(4.5 / 16, rel=0.01)


def test_an_expert_is_read_only_when_hit() -> None:
    """One token reads two of eight experts, many tokens read nearly all; all of them are streamed."""
    layer = small_mixtral().layers[0]
    assert experts_hit(layer, 1) == pytest.approx(2)
    assert 7.9 < experts_hit(layer, 32) < 8
    problem = problem_of(small_mixtral())
    problem = replace(problem, rates=replace(problem.rates, operation_s=0.0))
    near = policy_of(ON_GPU, ON_GPU, ON_GPU, batches=1)
    one = problem.plan(replace(near, gpu_batch_size=1, prefill_rows=1)).prediction.decode.busy_s["gpu"]
    many = problem.plan(replace(near, gpu_batch_size=32, prefill_rows=1)).prediction.decode.busy_s["gpu"]
    assert one < many
    streamed = problem.plan(policy_of(batches=1))
    layer_bytes = sum(slab["cpu"].nbytes for slab in sizes_of(problem, streamed).slabs)
    loaded = predicted(streamed, "prefill", "load_weight", "h2d")[1]
    assert loaded == pytest.approx(layer_bytes)


def test_cpu_attention_takes_rows_off_the_link() -> None:
    """Attended rows are not loaded; the CPU reads them instead, and the GPU waits for it."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=512)
    loaded = problem.plan(policy_of(ON_GPU, ON_CPU, ON_GPU, size=16))
    attended = problem.plan(policy_of(ON_GPU, ON_CPU, ON_GPU, size=16, cpu_attention=1.0))
    assert predicted(attended, "decode", "load_cache", "h2d")[1] == 0
    nbytes = predicted(attended, "decode", "attend", "cpu")[1]
    assert nbytes > predicted(loaded, "decode", "load_cache", "h2d")[1]
    decode = attended.prediction.decode
    assert decode.seconds >= decode.busy_s["cpu"] > decode.busy_s["gpu"]
    assert decode.binding == "cpu"


def test_an_emulated_gpu_shares_the_host() -> None:
    """Copies and compute of an emulated GPU cost host memory; those of a real one cost the link."""
    model, policy = small_opt(), policy_of()
    real = problem_of(model).plan(policy).prediction.decode
    shared = problem_of(model, emulated()).plan(policy).prediction.decode
    bandwidth = load_profile("t4-host").host.memory_bytes_per_s.median
    own = load_profile("two-core").host.memory_bytes_per_s.median
    assert shared.busy_s["cpu_mem"] * own > 2 * real.busy_s["cpu_mem"] * bandwidth


PUBLISHED = (
    ("opt-6.7b", policy_of(ON_GPU, ON_GPU, ON_GPU, size=2, batches=1), 25.26),
    ("opt-30b", policy_of(Split(gpu=0.2, cpu=0.8, disk=0), size=48, batches=3), 7.32),
    (
        "opt-175b",
        policy_of(Split(gpu=0, cpu=0.5, disk=0.5), ON_DISK, ON_CPU, size=32, batches=8, cpu_attention=1.0),
        0.69,
    ),
)


@pytest.mark.parametrize(("model", "policy", "tokens_per_s"), PUBLISHED)
def test_published_runs_come_out(model: str, policy: Policy, tokens_per_s: float) -> None:
    """FlexGen's policies on its T4 host are predicted within a quarter of what its paper measured (Table 2)."""
    problem = problem_of(model, load_profile("t4-host"), prompt_len=512, gen_len=32)
    rows = problem.prefill_rows(policy.gpu_batch_size)
    found = problem.plan(replace(policy, prefill_rows=rows)).prediction.throughput_tokens_per_s
    assert found == pytest.approx(tokens_per_s, rel=0.25)


def test_copies_and_attention_share_what_host_memory_brings() -> None:
    """Where it is less than either of them could use, a pass takes as long as all bytes through it."""
    problem = problem_of("opt-6.7b", load_profile("t4-host"), prompt_len=64, gen_len=8)
    plan = problem.plan(policy_of(ON_CPU, ON_CPU, ON_GPU, size=4, cpu_attention=1.0))
    assert plan.prediction.decode.binding == "h2d"
    plain = price(sizes_of(problem, plan), problem.rates).decode
    slow = replace(problem.rates, cpu_memory_bytes_per_s=problem.rates.cpu_memory_bytes_per_s / 16)
    full = price(sizes_of(problem, plan), slow).decode
    through = sum(
        task.num_bytes
        for task in plan.prediction.tasks
        if task.phase == "decode" and task.resource in ("h2d", "d2h", "cpu")
    )
    assert (plain.binding, full.binding) == ("h2d", "cpu_mem")
    assert full.seconds == pytest.approx(through / slow.cpu_memory_bytes_per_s, rel=0.1)
    assert full.busy_s["h2d"] == plain.busy_s["h2d"]
