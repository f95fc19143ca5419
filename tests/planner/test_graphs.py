"""Which layers' decode is replayed as CUDA graphs, what that takes and what it saves."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest

from hwprofiles.points import Graph, Rate
from hwprofiles.profile import HardwareProfile, load_profile
from planner.graphs import MOST_GRAPHS, OPERATIONS_OF_END, graph_operations
from planner.held import held_by_block
from planner.host_rates import capture_time
from planner.policy import Policy, Split
from planner.predict import predict
from planner.pricing import price, price_blocks
from planner.problem import Problem
from planner.relaxed import Relaxed
from planner.request import Request
from planner.sample import representative
from planner.schedule import TaskKind, tasks
from planner.search import score, search
from planner.shape import shape_of
from planner.shares import Shares
from planner.simulate import phase_times
from planner.sizes import Sizes
from planner.walk import AT_HOME
from planner.work import Choice
from tests.planner.problems import GB, ON_CPU, ON_DISK, ON_GPU, emulated, policy_of, problem_of, small_opt

OPERATION_BYTES, ON_HOST_BYTES = 7000, 5000


def with_graphs(profile: HardwareProfile | None = None) -> HardwareProfile:
    """A profile whose GPU was measured with them."""
    profile = profile or load_profile("h200-host")
    graph = Graph(
        replay_s=Rate(median=1.4e-5), operation_bytes=OPERATION_BYTES, host_operation_bytes=ON_HOST_BYTES
    )
    return replace(profile, gpus=(replace(profile.gpus[0], graph=graph),))


def sizes_of(problem: Problem, policy: Policy) -> Sizes:
    placement, _ = problem.place(policy)
    return Sizes(problem.model, problem.workload, policy, placement, problem.target.compute_tier)


NEAR = (ON_GPU, ON_GPU, ON_GPU)
HALF = Split(gpu=0.5, cpu=0.5, disk=0.0)
ALL_GPU = policy_of(*NEAR, size=8)
HALF_WEIGHTS = policy_of(HALF, ON_GPU, ON_GPU, size=8)
CACHE_AWAY = policy_of(ON_GPU, ON_CPU, ON_GPU, size=8)
ATTENDED = policy_of(ON_GPU, ON_CPU, ON_GPU, size=8, cpu_attention=1.0)
CACHE_ON_DISK = policy_of(ON_GPU, ON_DISK, ON_GPU, size=8)
HIDDEN_AWAY = policy_of(ON_GPU, ON_GPU, ON_CPU, size=8)


@pytest.mark.parametrize(
    ("model", "policy", "gen_len", "layers", "batches"),
    [
        ("opt-1.3b", ALL_GPU, 32, 24, 2),
        ("llama-3.2-1b", ALL_GPU, 32, 16, 2),
        ("opt-1.3b", ALL_GPU, 4, 0, 0),
        ("opt-1.3b", CACHE_AWAY, 32, 24, 2),
        ("opt-1.3b", ATTENDED, 32, 24, 2),
        ("opt-1.3b", CACHE_ON_DISK, 32, 0, 0),
        ("opt-1.3b", HALF_WEIGHTS, 32, 24, 2),
        ("opt-1.3b", HIDDEN_AWAY, 32, 24, 2),
        ("mixtral-8x7b", ALL_GPU, 32, 32, 2),
        ("mixtral-8x7b", policy_of(*NEAR, size=4096), 32, 0, 0),
        ("bloom-560m", ALL_GPU, 32, 0, 0),
        ("opt-1.3b", policy_of(*NEAR, size=1, batches=MOST_GRAPHS // 24 + 3), 32, 24, MOST_GRAPHS // 24),
    ],
)
def test_what_keeps_its_place_is_replayed(
    model: str, policy: Policy, gen_len: int, layers: int, batches: int
) -> None:
    """All layers of the first gpu batches, unless rows are on disk, the host counts tokens, or it would not pay."""
    problem = problem_of(model, with_graphs(), gen_len=gen_len)
    graphs = sizes_of(problem, policy).graphs
    assert (len(graphs.layers), len(graphs.batches)) == (layers, batches)


@pytest.mark.parametrize(
    ("num_layers", "policy", "times"),
    [
        (6, policy_of(ON_GPU, ON_GPU, ON_GPU), 1),
        (6, policy_of(ON_CPU, ON_GPU, ON_GPU), 1),
        (5, policy_of(ON_CPU, ON_GPU, ON_GPU), 2),
        (5, policy_of(ON_GPU, ON_CPU, ON_GPU, batches=3), 2),
        (5, policy_of(ON_CPU, ON_CPU, ON_GPU), 2),
        (6, policy_of(ON_CPU, ON_CPU, ON_GPU, batches=3), 1),
        (5, policy_of(ON_CPU, ON_CPU, ON_GPU, cpu_attention=1.0), 2),
    ],
)
def test_there_is_a_graph_for_each_place(num_layers: int, policy: Policy, times: int) -> None:
    """An odd number of layers in two slots lies in the one and in the other; so does what is loaded of the cache, for
    an odd number of layers and gpu batches together. As the schedule has it."""
    problem = problem_of(small_opt(num_layers), with_graphs(), gen_len=32)
    sizes = sizes_of(problem, policy)
    a_pass = num_layers * graph_operations(problem.model, problem.model.layers[0])
    a_pass, ends = a_pass * policy.num_gpu_batches, 2 * OPERATIONS_OF_END * policy.num_gpu_batches
    assert sizes.graphs.has_ends == (policy.cpu_attention == 0)
    assert sizes.graphs.num_operations == times * a_pass + ends * sizes.graphs.has_ends
    assert held_by_block(sizes, 0).num_graphs == times * policy.num_gpu_batches
    found = defaultdict(set)
    for task in tasks(shape_of(sizes), 6):
        if task.kind is TaskKind.COMPUTE and task.i and 0 <= task.j < num_layers:
            loaded = task.slots.cache if policy.cache == ON_CPU and not policy.cpu_attention else -1
            found[task.j, task.k].add((task.slots.weight, loaded))
    assert {len(slots) for slots in found.values()} == {times}


def test_graphs_are_for_plans_that_wait_for_the_host() -> None:
    """A small model's decode is asked for kernel by kernel; where the link or the GPU is at work longer, none is.

    What is not captured takes no memory either.
    """
    small = problem_of("opt-1.3b", with_graphs(), gen_len=32).plan(ALL_GPU)
    streamed = problem_of("opt-30b", with_graphs(), gen_len=32).plan(
        policy_of(ON_CPU, ON_GPU, ON_GPU, size=8)
    )
    assert (small.policy.graphs, streamed.policy.graphs) == (True, False)
    assert [plan.ledger.bytes_of("gpu", "graphs") > 0 for plan in (small, streamed)] == [True, False]
    on_host = [plan.ledger.bytes_of("cpu", "graphs") for plan in (small, streamed)]
    assert on_host == [ON_HOST_BYTES * small.sizes().graphs.num_operations, 0]
    assert not streamed.sizes().graphs.layers
    called = replace(small, policy=replace(small.policy, graphs=False)).sizes()
    assert price(called, small.rates).decode.seconds > 1.5 * small.prediction.decode.formula_s


def test_a_plan_with_no_room_for_graphs_does_without() -> None:
    """A policy that fits as it is called is not refused for what would only make it faster."""
    problem = problem_of("opt-1.3b", with_graphs(), prompt_len=8, gen_len=32)
    most = problem.plan(ALL_GPU).ledger.peak_bytes("gpu")
    least = problem.place(replace(ALL_GPU, graphs=False))[1].peak_bytes("gpu")
    assert least < most
    for limit, graphs in ((most, True), (most - 1, False), (least, False), (least - 1, False)):
        tight = problem.with_limit("gpu", limit)
        plan = tight.plan(ALL_GPU)
        assert plan.policy.graphs == graphs
        assert bool(plan.ledger.shortfalls(tight.target)) == (limit < least)


@pytest.mark.parametrize(("model", "gpu"), [("opt-30b", 16 * GB), ("opt-13b", 8 * GB)])
def test_the_search_makes_room_for_graphs(model: str, gpu: int) -> None:
    """Fastest by a little are splits that leave none; the host may be slower than when it was measured."""
    problem = problem_of(model, with_graphs(), prompt_len=512, gen_len=32, gpu=gpu)
    plan = search(problem, Request())
    assert plan is not None
    assert plan.policy.graphs
    assert plan.ledger.bytes_of("gpu", "graphs") > 0
    assert plan.ledger.shortfalls(problem.target) == {}
    assert plan.prediction.decode.busy_s["host"] < 0.5 * plan.prediction.decode.seconds
    older = with_graphs()
    without = problem_of(
        model,
        replace(older, gpus=(replace(older.gpus[0], graph=None),)),
        prompt_len=512,
        gen_len=32,
        gpu=gpu,
    )
    called = search(without, Request())
    assert called is not None
    assert score(problem, plan) > 0.92 * score(without, called)


def test_called_decode_that_waits_for_the_host_is_worth_less() -> None:
    """It counts as 8% longer; not where the host has little to do, nor where there are no graphs to be had."""
    problem = problem_of("opt-1.3b", with_graphs(), prompt_len=512, gen_len=32)
    called = problem.plan(replace(ALL_GPU, graphs=False))
    called = replace(called, policy=replace(called.policy, graphs=False))
    decode = called.prediction.decode
    assert decode.busy_s["host"] > 0.25 * decode.seconds
    assert problem.insured_s(called) == pytest.approx(called.prediction.seconds + 0.08 * decode.seconds)
    replayed = replace(called, policy=replace(called.policy, graphs=True))
    assert problem.insured_s(replayed) == called.prediction.seconds
    older = replace(problem, target=replace(problem.target, graph_operation_bytes=0))
    assert older.insured_s(called) == called.prediction.seconds


def test_attention_on_the_cpu_leaves_the_host_little_to_do() -> None:
    """With graphs a layer that the CPU attends for is asked for in its two parts, and not operation by operation."""
    found = {
        name: problem_of("opt-1.3b", profile, gen_len=64).plan(ATTENDED).prediction.decode.busy_s["host"]
        for name, profile in (("graphs", with_graphs()), ("none", replace_graph(with_graphs())))
    }
    assert found["graphs"] < 0.5 * found["none"]


def test_a_window_that_slides_is_not_replayed() -> None:
    """Mistral's window is longer than a short prompt and shorter than a long one."""
    short, long = (
        sizes_of(
            problem_of("mistral-7b", with_graphs(), prompt_len=prompt, gen_len=32),
            policy_of(*NEAR, size=1, batches=1),
        )
        for prompt in (512, 4090)
    )
    assert len(short.graphs.layers) == 32
    assert not long.graphs.layers


def test_the_ledger_counts_graphs_where_they_are_used() -> None:
    """The driver's bytes for every operation; nothing on an emulated GPU, or without a measurement."""
    problem = problem_of("opt-1.3b", with_graphs(), gen_len=32)
    sizes = sizes_of(problem, ALL_GPU)
    held = problem.plan(ALL_GPU).ledger.bytes_of("gpu", "graphs")
    assert held >= OPERATION_BYTES * sizes.graphs.num_operations >= OPERATION_BYTES * 48 * 13
    for profile in (load_profile("t4-host"), emulated()):
        other = problem_of("opt-125m", profile, gen_len=32).plan(policy_of(*NEAR, size=2, batches=1))
        assert other.ledger.bytes_of("gpu", "graphs") == 0


def test_the_ledger_counts_what_the_heads_graph_computes() -> None:
    """Logits in the model's dtype and in float32, where a layer's results are smaller; not where the CPU attends."""
    problem = problem_of("opt-125m", with_graphs(), gen_len=32)
    for cpu_attention, has_logits in ((0.0, True), (1.0, False)):
        cache = ON_CPU if cpu_attention else ON_GPU
        policy = policy_of(ON_GPU, cache, ON_GPU, size=256, batches=1, cpu_attention=cpu_attention)
        sizes, entries = sizes_of(problem, policy), problem.plan(policy).ledger
        pool = entries.bytes_of("gpu", "graphs") - OPERATION_BYTES * sizes.graphs.num_operations
        assert sizes.graphs.num_operations > 0
        assert (pool >= 256 * 50272 * (2 + 4)) == has_logits


def test_replayed_decode_waits_less_for_the_host() -> None:
    """Small gpu batches of a small model are bound by the host without graphs; prefill is the same."""
    with_, without = (
        problem_of("opt-1.3b", profile, gen_len=32).plan(policy_of(*NEAR, size=1, batches=1)).prediction
        for profile in (with_graphs(), replace_graph(with_graphs()))
    )
    assert with_.decode.seconds < 0.6 * without.decode.seconds
    assert with_.prefill.seconds == pytest.approx(without.prefill.seconds)


def test_capturing_takes_its_time_once_a_block() -> None:
    """So much longer takes decode, and no other phase, as all layers of all gpu batches take to be captured."""
    quick = with_graphs()
    graph = quick.gpus[0].graph
    assert graph is not None
    slow = replace(quick, gpus=(replace(quick.gpus[0], graph=replace(graph, capture_s=Rate(median=0.0003))),))
    model = problem_of("opt-1.3b", quick).model
    policy = policy_of(*NEAR, size=1, batches=2)
    for gen_len in (5, 12, 40):
        first, second = (
            problem_of("opt-1.3b", profile, gen_len=gen_len).plan(policy).prediction
            for profile in (quick, slow)
        )
        longer_s = second.decode.seconds - first.decode.seconds
        operations = 2 * (24 * graph_operations(model, model.layers[0]) + 2 * OPERATIONS_OF_END)
        assert longer_s == pytest.approx(capture_time(slow, lambda rate: rate.median) * operations, rel=0.02)
        assert second.prefill.seconds == pytest.approx(first.prefill.seconds)


@pytest.mark.parametrize("policy", [policy_of(*NEAR, size=8), ATTENDED])
def test_later_blocks_capture_nothing(policy: Policy) -> None:
    """A job of ten blocks has the graphs of one, and holds them while it prefills."""
    profile = with_graphs()
    graph = profile.gpus[0].graph
    assert graph is not None
    profile = replace(
        profile, gpus=(replace(profile.gpus[0], graph=replace(graph, capture_s=Rate(median=1e-4))),)
    )
    rows = policy.block_size
    one, ten = (
        problem_of("opt-1.3b", profile, gen_len=32, num_prompts=count * rows).plan(policy)
        for count in (1, 10)
    )
    assert one.job
    assert ten.job
    saved_s = 10 * one.job.decode_s - ten.job.decode_s
    capture_s = capture_time(profile, lambda rate: rate.median) * one.sizes().graphs.num_operations
    assert one.policy.graphs
    assert saved_s > 9 * capture_s
    assert one.ledger.bytes_of("gpu", "graphs") == ten.ledger.bytes_of("gpu", "graphs")
    prefill = {
        plan.job.num_blocks: sum(e.prefill_bytes for e in plan.ledger.entries if e.purpose == "graphs")
        for plan in (one, ten)
        if plan.job
    }
    assert prefill[1] == 0 < prefill[10]


def test_the_lp_knows_of_graphs_as_far_as_there_are_enough() -> None:
    """Of a small model that waits for the host, none with the number of gpu batches free, fewer of very many."""
    times = {}
    for count in (None, 4, 64):
        for name, profile in (("graphs", with_graphs()), ("none", replace_graph(with_graphs()))):
            relaxed = Relaxed(
                problem=problem_of("opt-1.3b", profile, gen_len=64),
                choice=Choice(gpu_batch_size=2, prefill_rows=2, weight_bits=16, kv_bits=16),
                num_gpu_batches=count,
                max_decode_groups=2,
            )
            near = Shares(
                weights={"gpu": relaxed.weight_units, "cpu": 0.0, "disk": 0.0},
                cache={"gpu": relaxed.cache_units, "cpu": 0.0, "disk": 0.0},
                activations={"gpu": relaxed.activation_units, "cpu": 0.0, "disk": 0.0},
                attended=0.0,
                slot=0.0,
                inverse_batches=1 / (count or 4),
                one=1.0,
            )
            times[count, name] = relaxed.seconds(near, AT_HOME)
    assert times[None, "graphs"] == times[None, "none"]
    assert times[4, "graphs"] < 0.6 * times[4, "none"]
    assert times[4, "graphs"] < times[64, "graphs"] < times[64, "none"]


def replace_graph(profile: HardwareProfile) -> HardwareProfile:
    return replace(profile, gpus=(replace(profile.gpus[0], graph=None),))


def test_a_block_costs_the_same_alone_and_in_a_job() -> None:
    """Capturing waits for nothing that other passes leave free, however the passes are grouped."""
    profile = with_graphs()
    graph = profile.gpus[0].graph
    assert graph is not None
    slow = replace(graph, capture_s=Rate(median=2e-3))
    profile = replace(profile, gpus=(replace(profile.gpus[0], graph=slow),))
    for gen_len in (6, 32):
        problem = problem_of("opt-30b", profile, gen_len=gen_len, num_prompts=ALL_GPU.block_size)
        sizes = sizes_of(problem, replace(ALL_GPU, graphs=True))
        blocks, rates = (
            problem.workload.blocks(ALL_GPU.gpu_batch_size, ALL_GPU.num_gpu_batches),
            problem.rates,
        )
        alone, in_a_job = price(sizes, rates), price_blocks(sizes, rates, blocks, 1)
        assert in_a_job.decode.seconds == pytest.approx(alone.decode.seconds, rel=0.01)
        assert in_a_job.prefill.seconds == pytest.approx(alone.prefill.seconds, rel=0.01)


@pytest.mark.parametrize("times", [0.25, 0.5, 1, 2, 4])
def test_few_passes_take_as_long_as_all_however_fast_the_host_replays(times: float) -> None:
    """Where the GPU takes about as long as the host, too: the passes that stand for others begin as those do."""
    problem = problem_of("opt-6.7b", with_graphs(), gen_len=16)
    sizes, rates = sizes_of(problem, policy_of(*NEAR, size=32, batches=1)), problem.rates
    graph_s = rates.graph_s
    assert graph_s
    rates = replace(rates, graph_s=graph_s * times, call_s=rates.call_s * times, task_overhead_s=0.0)
    whole = phase_times(sizes, rates, representative(sizes, 16))["decode"].seconds
    assert predict(sizes, rates).decode.seconds == pytest.approx(whole, rel=0.01)
