"""Matrix products beside a GPU: each at the rate of its own size; and what crosses the link for the CPU's attention."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hwprofiles.points import GPU_LARGE_COLUMNS, GPU_SMALL_COLUMNS, GemmPoint, Rate
from hwprofiles.profile import HardwareProfile, load_profile
from planner.model import load_model
from planner.problem import Problem
from planner.products import expert_matrices, matrices
from tests.planner.problems import ON_CPU, ON_GPU, policy_of, problem_of, small_opt

SLOW, FAST = 1e10, 4e10
"""FLOP per second of a small matrix and of a large one, far below what memory and the host allow."""


def two_sizes() -> HardwareProfile:
    """An H200 host whose GPU has a rate for each of two sizes, of few rows."""
    profile = load_profile("h200-host")
    rate = {}
    for flops in (SLOW, FAST):
        points = tuple(GemmPoint(rows=rows, flops_per_s=Rate(median=flops)) for rows in (1, 64))
        rate[flops] = {"float16": points}
    gpu = replace(profile.gpus[0], gemm=rate[FAST], gemm_small=rate[SLOW])
    return replace(profile, gpus=(gpu,))


def compute_s(problem: Problem, *, cpu_attention: float = 0.0) -> float:
    """Of decode's tasks on the GPU, with the cache in host memory where the CPU attends."""
    cache = ON_CPU if cpu_attention else ON_GPU
    policy = policy_of(ON_GPU, cache, ON_GPU, size=8, batches=1, cpu_attention=cpu_attention)
    plan = problem.plan(policy)
    tasks = plan.prediction.tasks
    return sum(task.seconds for task in tasks if task.phase == "decode" and task.resource == "gpu")


def test_a_layers_matrices_by_shape() -> None:
    """Mixtral: q and o alike, k and v alike, the router; its experts' are counted by themselves."""
    [layer] = {id(layer): layer for layer in load_model("mixtral-8x7b").layers[:1]}.values()
    found = dict(matrices(layer))
    assert set(found) == {(4096, 4096), (1024, 4096), (8, 4096)}
    assert found[4096, 4096] == pytest.approx(4 * found[1024, 4096])
    assert sum(found.values()) == pytest.approx(1)
    assert dict(expert_matrices(layer)) == pytest.approx({(28672, 4096): 2 / 3, (4096, 14336): 1 / 3})


def test_a_product_is_as_fast_as_its_own_matrix() -> None:
    """OPT's four of the hidden size are small, the two of the MLP half-way to large ones."""
    columns = GPU_SMALL_COLUMNS
    model = small_opt(2, columns, vocab_size=64)
    problem = problem_of(model, two_sizes(), prompt_len=16, gen_len=2)
    even = replace(problem, rates=replace(problem.rates, gemm_small=problem.rates.gemm))
    flops = 2 * 8 * 2 * columns**2  # of two layers and eight sequences, for each matrix of the hidden size
    size = math.log(2) / math.log(GPU_LARGE_COLUMNS / GPU_SMALL_COLUMNS)
    middle = SLOW * (FAST / SLOW) ** size
    expected = 4 * flops * (1 / SLOW - 1 / FAST) + 8 * flops * (1 / middle - 1 / FAST)
    head = 2 * 8 * 64 * columns * (1 / SLOW - 1 / FAST)
    assert compute_s(problem) - compute_s(even) == pytest.approx(expected + head, rel=0.01)


def test_queries_and_results_cross_the_link() -> None:
    """In float32, each way, for every sequence that the CPU attends."""
    model = replace(small_opt(2, 1024), dtype="float16")
    problem = problem_of(model, two_sizes(), prompt_len=16, gen_len=2)
    slow = replace(
        problem.rates.d2h, points=tuple((size, rate / 1e6) for size, rate in problem.rates.d2h.points)
    )
    slower = replace(problem, rates=replace(problem.rates, d2h=slow))
    more = compute_s(slower, cpu_attention=1.0) - compute_s(problem, cpu_attention=1.0)
    nbytes = 2 * 8 * 1024 * 4  # of two layers and eight sequences
    assert more == pytest.approx(1e6 * nbytes / problem.rates.d2h.best, rel=0.01)
    assert compute_s(slower) == compute_s(problem)
