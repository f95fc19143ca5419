"""Warming up computes as a run does, and leaves nothing behind that a run could read."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest
import torch

from executor.checkpoint import Checkpoint
from executor.engine import Engine, EngineOptions
from planner.schedule import Task
from tests.executor.ranks import make_pipeline
from tests.executor.test_parity import LENGTHS, PLACEMENTS
from tests.executor.tiny import make_plan, random_model, random_prompts, reference_tokens, run_plan, save

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("family", "placement"), list(zip(cycle(["gemma2", "mixtral", "opt"]), PLACEMENTS, strict=False))
)
def test_tokens_are_the_same_afterwards(family: str, placement: str, tmp_path: Path) -> None:
    """Token by token as transformers, wherever weights, cache and activations are."""
    model = random_model(family)
    plan = make_plan(save(model, tmp_path / "model"), **PLACEMENTS[placement])  # type: ignore[arg-type]
    requests = random_prompts(LENGTHS, 6)
    options = EngineOptions(device=CPU, offload_dir=tmp_path)
    tokens = run_plan(plan, tmp_path / "model", requests, options, warm_up=True)
    assert tokens == reference_tokens(model, requests)


def test_both_phases_are_played_at_full_size_and_not_measured(tmp_path: Path) -> None:
    """Logits of all rows of a gpu batch, for a prompt and for a token after it; the run's figures begin at nothing."""
    model = random_model("llama")
    plan = make_plan(save(model, tmp_path / "model"), weights="gcd", cache=(1, 1, 0, 2, 0))
    engine = Engine(plan, EngineOptions(device=CPU, offload_dir=tmp_path))
    seen: list[tuple[int, tuple[int, ...]]] = []

    def observe(task: Task, logits: torch.Tensor) -> None:
        seen.append((task.i, tuple(logits.shape)))

    engine.compute.observe_logits = observe  # type: ignore[method-assign]
    try:
        engine.load(Checkpoint(tmp_path / "model", plan.model.spec()))
        engine.warm_up()
    finally:
        engine.close()
    assert seen == [(0, (4, 160)), (1, (4, 160))]
    assert not engine.measurements.totals


def test_stages_of_a_pipeline_warm_up_alone(tmp_path: Path) -> None:
    """First, middle and last stage, none of which has anybody to send to or to receive from."""
    model = random_model("opt", num_hidden_layers=4)
    spec = save(model, tmp_path / "model")
    plan = make_pipeline(spec, [{"num_layers": 1}, {"num_layers": 2}, {"num_layers": 1}], 2, weights="gc")
    for rank in range(3):
        own = plan.of_rank(rank)
        engine = Engine(own, EngineOptions(device=CPU, offload_dir=tmp_path))
        try:
            engine.load(Checkpoint(tmp_path / "model", own.model.spec()))
            engine.warm_up()
        finally:
            engine.close()
