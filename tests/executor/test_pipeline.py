"""A pipeline of ranks gives the same tokens as one rank and as transformers' own generate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.rank_group import clock_offset
from executor.transport import Ring
from tests.executor.ranks import RankPool, make_pipeline, run_pipeline
from tests.executor.tiny import random_model, random_prompts, reference_tokens, save

LENGTHS = [16, 5, 9, 12, 12, 3, 1, 8, 10, 11, 2]
ALL_GPU: dict[str, object] = {}
THREE_TIERS: dict[str, object] = {
    "weights": "gcdd",
    "cache": (1, 1, 0, 2, 0),
    "activations": (1, 1, 2),
}
CPU_ATTENTION: dict[str, object] = {
    "weights": "cdg",
    "cache": (1, 0, 1, 1, 1),
    "activations": (0, 3, 1),
}
NO_GPU: dict[str, object] = {
    "compute_tier": "cpu",
    "weights": "cd",
    "cache": (0, 1, 0, 3, 0),
    "activations": (0, 2, 2),
}
CASES: dict[str, tuple[str, int, list[dict[str, object]], dict[str, object]]] = {
    "2 ranks": ("opt", 2, [{"num_layers": 2}, {"num_layers": 2}], THREE_TIERS),
    "2 ranks, one wave": ("llama", 1, [{"num_layers": 3}, {"num_layers": 1}], THREE_TIERS),
    "2 ranks, all at home": ("gpt2", 2, [{"num_layers": 1}, {"num_layers": 3}], ALL_GPU),
    "3 uneven ranks": (
        "gemma2",
        3,
        [
            {"num_layers": 1, **ALL_GPU},
            {"num_layers": 2, **THREE_TIERS},
            {"num_layers": 1, **CPU_ATTENTION},
        ],
        {},
    ),
    "4 ranks": ("mixtral", 4, [{"num_layers": 1}] * 4, THREE_TIERS),
    "4 ranks, more waves": ("qwen3", 5, [{"num_layers": 1}] * 4, CPU_ATTENTION),
    "no gpu": ("phi3", 3, [{"num_layers": 1}, {"num_layers": 1}, {"num_layers": 2}], NO_GPU),
    "from device to device": (
        "bloom",
        2,
        [{"num_layers": 2}, {"num_layers": 2}],
        {"comm_device": "cuda", **THREE_TIERS},
    ),
    "windows": ("gemma2", 2, [{"num_layers": 1}, {"num_layers": 3}], THREE_TIERS),
    "tied ends": ("opt", 3, [{"num_layers": 1}, {"num_layers": 2}, {"num_layers": 1}], {"weights": "c"}),
}
FOUR_LAYERS = {"gpt2": {"n_layer": 4}, "bloom": {"n_layer": 4}}


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    """Four processes."""
    with RankPool(4) as ranks:
        yield ranks


@pytest.mark.parametrize("case", CASES)
def test_tokens_equal_transformers(case: str, pool: RankPool, tmp_path: Path) -> None:
    """Ragged prompts, blocks of several waves, the last one short, uneven max_tokens: token by token the same."""
    family, num_waves, stages, common = CASES[case]
    model = random_model(family, **FOUR_LAYERS.get(family, {"num_hidden_layers": 4}))
    spec = save(model, tmp_path / "model")
    plan = make_pipeline(spec, stages, num_waves, num_gpu_batches=5, **common)
    requests = random_prompts(LENGTHS * 2, [6, 3, 8, 1, 5] * 5)
    assert run_pipeline(pool, plan, tmp_path / "model", requests) == reference_tokens(model, requests)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", ["3 uneven ranks", "4 ranks", "from device to device", "no gpu"])
def test_random_delays_change_nothing(case: str, seed: int, pool: RankPool, tmp_path: Path) -> None:
    """Every task on every rank is held back at random: a missing dependency would show as other tokens."""
    _, num_waves, stages, common = CASES[case]
    model = random_model("opt", num_hidden_layers=4)
    spec = save(model, tmp_path / "model")
    plan = make_pipeline(spec, stages, num_waves, num_gpu_batches=4, **common)
    requests = random_prompts(LENGTHS, 4)
    tokens = run_pipeline(pool, plan, tmp_path / "model", requests, seed=seed)
    assert tokens == reference_tokens(model, requests)


def test_one_task_after_the_other(pool: RankPool, tmp_path: Path) -> None:
    """Without overlap only the net's lanes have threads: nothing waits for ever, the tokens are the same."""
    model = random_model("llama", num_hidden_layers=4)
    spec = save(model, tmp_path / "model")
    plan = make_pipeline(spec, [{"num_layers": 2}] * 2, 2, num_gpu_batches=4, **THREE_TIERS)
    requests = random_prompts(LENGTHS, 4)
    tokens = run_pipeline(pool, plan, tmp_path / "model", requests, overlap=False)
    assert tokens == reference_tokens(model, requests)


def offset_of_a_shifted_clock(ring: Ring, rank: int, shift_s: float) -> float:
    """This rank's clock runs ahead by as much as its number says."""
    return clock_offset(rank, [1, 2], lambda: time.perf_counter() + rank * shift_s)


def test_clocks_are_compared(pool: RankPool) -> None:
    """Each rank finds how far its clock is from the first one's, as closely as the quickest exchange allows."""
    shift_s = 1000.0
    offsets = pool.run(3, offset_of_a_shifted_clock, shift_s)
    assert offsets == pytest.approx([0.0, -shift_s, -2 * shift_s], abs=30.0)
