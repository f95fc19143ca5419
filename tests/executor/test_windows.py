"""Sliding windows: a layer's cache holds its window and no more, and what moves for it stops growing there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from executor.checkpoint import Checkpoint
from executor.engine import Engine, EngineOptions
from executor.sampling import Sampler
from planner.layout import align
from planner.plan import Plan
from planner.pricing import price
from planner.tasks import TaskKind
from planner.workload import Workload
from tests.executor.test_parity import LENGTHS, PLACEMENTS
from tests.executor.tiny import (
    blocks_of,
    make_plan,
    random_model,
    random_prompts,
    reference_tokens,
    run_plan,
    save,
    spec_of,
)
from tests.planner.problems import problem_of

CPU = torch.device("cpu")
PROMPT_LEN, GEN_LEN = 16, 8


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny matrices gain nothing from more."""
    torch.set_num_threads(1)


@pytest.mark.parametrize("window", [2, 3, 15, 16, 17, 22, 23, 24, 25])
@pytest.mark.parametrize("placement", ["three tiers, cpu attention", "no gpu, cpu and disk"])
def test_windows_around_every_edge(placement: str, window: int, tmp_path: Path) -> None:
    """Shorter than nearly all prompts, as long as the longest, as what is cached in the end, longer than all."""
    model = random_model("gemma2", sliding_window=window)
    plan = make_plan(save(model, tmp_path / "model"), **PLACEMENTS[placement])  # type: ignore[arg-type]
    requests = random_prompts(LENGTHS, GEN_LEN)
    tokens = run_plan(plan, tmp_path / "model", requests, EngineOptions(device=CPU, offload_dir=tmp_path))
    assert tokens == reference_tokens(model, requests)


@pytest.mark.parametrize("window", [5, 8])
def test_a_cache_goes_round_many_times(window: int, tmp_path: Path) -> None:
    """Prompts of one token to three windows, padded, and answers of five windows."""
    model = random_model("mistral", sliding_window=window)
    plan = make_plan(
        save(model, tmp_path / "model"),
        weights="gcd",
        cache=(1, 1, 1, 1, 1),
        activations=(2, 2, 1),
        workload=Workload(prompt_len=24, gen_len=40),
    )
    requests = random_prompts([24, 1, 13, 8, 5, 7, 20, 2], 40)
    tokens = run_plan(plan, tmp_path / "model", requests, EngineOptions(device=CPU, offload_dir=tmp_path))
    assert tokens == reference_tokens(model, requests)


def moved(plan: Plan, directory: Path) -> dict[tuple[str, str, str], float]:
    """Bytes of cache by (phase, kind, resource) in a block of prompts as long as planned."""
    engine = Engine(plan, EngineOptions(device=CPU, offload_dir=directory))
    rows = plan.policy.gpu_batch_size * plan.policy.num_gpu_batches
    (block,) = blocks_of(plan, random_prompts([PROMPT_LEN] * rows, GEN_LEN))
    try:
        engine.load(Checkpoint(directory / "model", plan.model.spec()))
        samplers = [Sampler(b, eos_ids=frozenset(), tokenizer=None, device=CPU) for b in block.gpu_batches]
        engine.generate(block, samplers)
        totals = engine.measurements.totals
        return {key: total.num_bytes for key, total in totals.items() if _is_of_cache(key[1])}
    finally:
        engine.close()


MOVED = {
    name: PLACEMENTS[name] | {"cache": cache}
    for name, cache in (
        ("three tiers", (1, 1, 0, 2, 0)),
        ("three tiers, cpu attention", (1, 0, 2, 1, 0)),
        ("no gpu, cpu and disk", (0, 1, 0, 3, 0)),
    )
}
"""Rows that are attended on the disk's pages left out: the price counts whole pages, a run what is in them."""


def _is_of_cache(kind: str) -> bool:
    return kind == TaskKind.ATTEND or kind.endswith("_cache")


@pytest.mark.parametrize("kv_bits", [16, 4])
@pytest.mark.parametrize("placement", [*MOVED])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "llama"])
def test_a_run_moves_the_bytes_that_are_priced(
    family: str, placement: str, kv_bits: int, tmp_path: Path
) -> None:
    """Stored, loaded and attended: in every phase, on every resource, to the byte."""
    spec = save(random_model(family), tmp_path / "model")
    plan = make_plan(spec, kv_bits=kv_bits, **MOVED[placement])  # type: ignore[arg-type]
    priced = {
        (task.phase, task.kind, task.resource): task.num_bytes
        for task in price(plan.sizes(), problem_of().rates).tasks
        if _is_of_cache(task.kind)
    }
    assert moved(plan, tmp_path) == pytest.approx(priced)
    assert priced


def test_the_ledger_holds_the_window() -> None:
    """Of three layers the two with a window of 6 keep 6 of 24 tokens, wherever they are; so do slots and staging."""
    spec = spec_of(random_model("gemma2"))
    plan = make_plan(spec, cache=(1, 2, 0, 1, 0), num_gpu_batches=2)
    sizes = plan.sizes()
    vector = spec.kv_dim * 4
    assert sizes.kept == [6, 24, 6]
    assert plan.ledger.bytes_of("gpu", "cache") == 2 * sum(align(kept * 2 * vector) for kept in (6, 24, 6))
    assert plan.ledger.bytes_of("cpu", "cache") == 2 * sum(align(kept * 4 * vector) for kept in (6, 24, 6))
    assert plan.ledger.bytes_of("disk", "cache") == 2 * (6 + 24 + 6) * 4096
    all_slide = make_plan(spec_of(random_model("mistral")), cache=(1, 2, 0, 1, 0)).sizes()
    none = make_plan(spec_of(random_model("mistral", sliding_window=None)), cache=(1, 2, 0, 1, 0)).sizes()
    assert all_slide.cache_staging() == 7 * 4096
    assert none.cache_staging() == 24 * 4096
    assert all_slide.cache_slot() < none.cache_slot() / 3
