"""Rates of a host that computes: products by hidden size, elementwise work by the size of its results."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hwprofiles.allocation import LARGE_BYTES
from hwprofiles.points import LARGE_COLUMNS, SMALL_COLUMNS, GemmPoint, LayerPoint, Rate
from hwprofiles.profile import BesideH2d, Concurrent, HardwareProfile, load_profile
from planner.disk_rates import full_rate
from planner.host_share import share_of
from planner.machine_change import parse_changes
from planner.plan import Plan
from planner.problem import Problem
from planner.products import output_weight
from planner.rates import Rates, make_rates
from tests.planner.problems import ON_CPU, policy_of, problem_of, small_opt

SMALL, LARGE, FAST, SLOW = 1e9, 4e9, 40e9, 8e9
"""FLOP per second of one row with small and large matrices; elementwise bytes per second."""


def two_sizes() -> HardwareProfile:
    """The two-core host with products and elementwise rates of two sizes each."""
    profile = load_profile("two-core")
    one_row = {size: (GemmPoint(rows=1, flops_per_s=Rate(median=size)),) for size in (SMALL, LARGE)}
    host = replace(
        profile.host,
        gemm={"float32": one_row[LARGE]},
        gemm_small={"float32": one_row[SMALL]},
        elementwise_bytes_per_s=Rate(median=SLOW),
        elementwise_small_bytes_per_s=Rate(median=FAST),
    )
    return replace(profile, host=host)


def rates() -> Rates:
    """In float32."""
    return make_rates(two_sizes(), "float32")


def computing(problem: Problem, phase: str, size: int) -> float:
    """Seconds of a phase's compute tasks with everything in host memory."""
    plan: Plan = problem.plan(policy_of(ON_CPU, ON_CPU, ON_CPU, size=size, batches=1, prefill_rows=size))
    return sum(task.seconds for task in plan.prediction.tasks if task.phase == phase)


def test_products_are_as_fast_as_measured_at_either_size() -> None:
    """Half-way between the hidden sizes, in log scale, half-way between the rates; flat beyond them."""
    middle = math.sqrt(SMALL_COLUMNS * LARGE_COLUMNS)
    assert rates().product_flops_per_s(1, SMALL_COLUMNS) == pytest.approx(SMALL)
    assert rates().product_flops_per_s(1, LARGE_COLUMNS) == pytest.approx(LARGE)
    assert rates().product_flops_per_s(1, middle) == pytest.approx(math.sqrt(SMALL * LARGE))
    assert rates().product_flops_per_s(1, 64) == pytest.approx(SMALL)
    assert rates().product_flops_per_s(1, 16384) == pytest.approx(LARGE)


def with_wide(wide: float) -> Rates:
    """A host that was measured with many outputs, too: this share of the rate of a layer's matrices together."""
    profile = two_sizes()
    points = tuple(
        GemmPoint(rows=point.rows, flops_per_s=Rate(median=wide * point.flops_per_s.median))
        for point in profile.host.gemm["float32"]
        if point.rows < 256
    )
    return make_rates(replace(profile, host=replace(profile.host, gemm_wide={"float32": points})), "float32")


@pytest.mark.parametrize("wide", [0.5, 0.8, 1.0])
def test_matrices_of_many_outputs_are_slower_by_as_much_as_was_measured(wide: float) -> None:
    """A layer of the probe's: two thirds of its arithmetic with few outputs, a third with those of an MLP's first."""
    found = with_wide(wide)
    weights = 0.0, 0.5, output_weight(4 * LARGE_COLUMNS), 1.0
    few, half, first, many = (found.product_flops_per_s(1, LARGE_COLUMNS, weight) for weight in weights)
    together = found.product_flops_per_s(1, LARGE_COLUMNS)
    assert many == pytest.approx(wide * together)
    assert half == pytest.approx(math.sqrt(few * many))
    assert 2 / 3 / few + 1 / 3 / first == pytest.approx(1 / together)
    small = found.product_flops_per_s(1, SMALL_COLUMNS)
    assert found.product_flops_per_s(1, SMALL_COLUMNS, 0.0) == pytest.approx(small)
    assert found.product_flops_per_s(1, SMALL_COLUMNS, 1.0) == pytest.approx(small * many / few)
    assert found.product_flops_per_s(4096, LARGE_COLUMNS, 1.0) == pytest.approx(
        found.product_flops_per_s(4096, LARGE_COLUMNS)
    )


def test_outputs_are_weighed_in_their_logarithm() -> None:
    """Up to 4096 are few, from 10240 on they are many."""
    middle = math.sqrt(4096 * 10240)
    found = [output_weight(count) for count in (1, 4096, middle, 10240, 100_000)]
    assert found == pytest.approx([0, 0, 0.5, 1, 1])


def test_a_large_vocabulary_costs_more_where_outputs_do() -> None:
    """The head has many outputs, as three quarters of the layers' largest matrices; prompts do not feel it."""
    spec = replace(small_opt(2, 2048, vocab_size=50000), dtype="float32")
    problem = problem_of(spec, two_sizes(), prompt_len=1024, gen_len=2)
    slower = replace(problem, rates=with_wide(0.5))
    same = replace(problem, rates=with_wide(1.0))
    assert computing(slower, "decode", 1) > 1.1 * computing(same, "decode", 1)
    assert computing(slower, "prefill", 1) < 1.05 * computing(same, "prefill", 1)


def test_a_profile_of_one_size_has_one_rate() -> None:
    """Older profiles: products of any size, and elementwise work of any size, at the one rate there is."""
    profile = two_sizes()
    host = replace(profile.host, gemm_small={}, elementwise_small_bytes_per_s=None)
    old = make_rates(replace(profile, host=host), "float32")
    assert old.product_flops_per_s(1, 64) == old.gemm.at(1)
    assert old.elementwise_s(SLOW) == pytest.approx(1.0)
    assert old.new_tensor_s(10 * LARGE_BYTES) == 0.0


def test_a_large_sum_takes_what_was_measured() -> None:
    """Three bytes moved for each of the result at the rate of large ones; below that size at the other rate."""
    size = 2.0 * LARGE_BYTES
    assert rates().elementwise_s(3 * size) + rates().new_tensor_s(size) == pytest.approx(3 * size / SLOW)
    assert rates().new_tensor_s(LARGE_BYTES - 1) == 0.0
    assert rates().elementwise_s(FAST) == pytest.approx(1.0)


def test_large_results_make_a_prompt_slower_and_decode_not() -> None:
    """Beside a host whose new pages cost nothing: of 64 rows one token each is small, 128 tokens each are large."""
    spec = replace(small_opt(), dtype="float32")
    now, ideal = (
        problem_of(
            spec, replace(two_sizes(), host=replace(two_sizes().host, elementwise_bytes_per_s=Rate(median=x)))
        )
        for x in (SLOW, FAST)
    )
    assert computing(now, "prefill", 64) > computing(ideal, "prefill", 64)
    assert computing(now, "decode", 64) == computing(ideal, "decode", 64)


def test_small_models_decode_at_the_rate_of_small_matrices() -> None:
    """Small matrices at the rate of large ones: a model below the smaller size gains, one above the larger does not."""
    quick = two_sizes()
    quick = replace(quick, host=replace(quick.host, gemm_small=quick.host.gemm))
    for hidden, gains in ((512, True), (2048, False)):
        spec = replace(small_opt(2, hidden), dtype="float32")
        slow, fast = (computing(problem_of(spec, found), "decode", 1) for found in (two_sizes(), quick))
        assert (slow > fast) == gains


def test_both_sizes_are_shared_alike() -> None:
    """A rank of two has half of each rate."""
    half = make_rates(share_of(two_sizes(), 2, None, ()), "float32")
    assert half.product_flops_per_s(1, 64) == pytest.approx(SMALL / 2)
    assert half.elementwise_s(FAST) == pytest.approx(2.0)


def test_faster_cores_are_faster_at_both_sizes() -> None:
    """Cores of twice the rate take half the time for products and elementwise work of any size."""
    problem = problem_of(replace(small_opt(), dtype="float32"), two_sizes())
    (change,) = parse_changes("cpu-rate=x2")
    twice = change.apply(problem).rates
    assert twice.product_flops_per_s(1, 64) == pytest.approx(2 * SMALL)
    assert twice.elementwise_s(FAST) == pytest.approx(0.5)
    assert twice.new_tensor_s(LARGE_BYTES) == pytest.approx(rates().new_tensor_s(LARGE_BYTES) / 2)


def test_a_cold_call_counts_less_and_a_warm_one_more() -> None:
    """Beside a GPU; launches that were timed beside it count likewise, a CPU's own layers as they are."""
    profile = load_profile("h200-host")
    gpu, host = profile.gpus[0], profile.host
    points = tuple(
        LayerPoint(operations=count, seconds=Rate(median=seconds))
        for count, seconds in ((13, 4e-4), (54, 8e-4))
    )
    cold = tuple(replace(point, is_cold=True) for point in points)
    found = [
        make_rates(replace(profile, gpus=(replace(gpu, layer=layer),)), "float16") for layer in (points, cold)
    ]
    assert [rates.small_layer_s for rates in found] == pytest.approx([6e-4, 3.12e-4])
    assert [rates.operation_s for rates in found] == pytest.approx([1.5 * 4e-4 / 41, 0.78 * 4e-4 / 41])
    assert gpu.packed is not None
    assert gpu.packed.issue_s is not None
    issued = [rates.packed.issue_s for rates in found if rates.packed]
    assert issued == pytest.approx([1.5 * gpu.packed.issue_s.median, 0.78 * gpu.packed.issue_s.median])
    alone = replace(profile, gpus=(), host=replace(host, layer=cold))
    assert make_rates(alone, "float32").small_layer_s == pytest.approx(4e-4)


def test_kernels_follow_one_another() -> None:
    """Each operation of a layer on a GPU takes some of its time beside what it moves; nothing of that on a CPU.

    As measured, else by what a launch takes, however slow the host is.
    """
    profile = load_profile("h200-host")
    [gpu] = profile.gpus
    assert gpu.graph is not None
    graph = replace(gpu.graph, operation_s=Rate(median=1.7e-6))
    launches = [replace(gpu, launch_overhead_s=Rate(median=seconds)) for seconds in (4e-6, 4e-5)]
    unmeasured = [replace(launch, graph=replace(graph, operation_s=None)) for launch in launches]
    for found, expected in zip(
        (*unmeasured, replace(gpu, graph=graph)), (1.6e-6, 2.2e-6, 1.7e-6), strict=True
    ):
        rates = make_rates(replace(profile, gpus=(found,)), "float16")
        assert rates.kernel_s == pytest.approx(expected)
    assert make_rates(load_profile("two-core"), "float16").kernel_s == 0.0


def test_a_disk_beside_a_gpu_is_slower_than_alone() -> None:
    """A quarter of the way to what it does while all else is at work; an own figure without that, and on a CPU."""
    profile = load_profile("h200-host")
    assert profile.disk is not None
    assert profile.concurrent is not None
    alone = full_rate(profile.disk.read)
    beside = replace(
        profile.concurrent, disk_read_bytes_per_s=Rate(median=0.2 * alone)
    )  # a quarter of the missing 0.8
    found = make_rates(replace(profile, concurrent=beside), "float16")
    lonely = make_rates(replace(profile, concurrent=None), "float16")
    for curve, whole in ((found.disk_read, lonely.disk_read), (found.disk_write, lonely.disk_write)):
        assert curve.best == pytest.approx(0.8 * whole.best)
    cpu = load_profile("two-core")
    assert (
        make_rates(cpu, "float32").disk_read == make_rates(replace(cpu, concurrent=None), "float32").disk_read
    )


def test_host_memory_brings_more_than_its_cores_read() -> None:
    """What attention and loads bring at once; else what all parts do, and never less than the cores read."""
    profile = load_profile("h200-host")
    together = Concurrent(
        h2d_bytes_per_s=Rate(median=40e9),
        d2h_bytes_per_s=Rate(median=50e9),
        cpu_attention_bytes_per_s=Rate(median=60e9),
        disk_read_bytes_per_s=Rate(median=10e9),
    )
    for own, expected in ((70e9, 160e9), (200e9, 200e9)):
        host = replace(profile.host, memory_bytes_per_s=Rate(median=own))
        rates = make_rates(replace(profile, host=host, concurrent=together), "float16")
        assert rates.cpu_memory_bytes_per_s == pytest.approx(expected)
        beside = BesideH2d(
            dtype="bfloat16",
            threads=12,
            attention_bytes_per_s=Rate(median=65e9),
            h2d_bytes_per_s=Rate(median=45e9),
        )
        at_once = replace(together, attention_beside_h2d=beside)
        rates = make_rates(replace(profile, host=host, concurrent=at_once), "float16")
        assert rates.cpu_memory_bytes_per_s == pytest.approx(110e9)
