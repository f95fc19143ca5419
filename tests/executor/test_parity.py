"""The engine gives the same tokens as transformers' own generate, whatever lives where."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from executor.engine import EngineOptions
from tests.executor.tiny import FAMILIES, make_plan, random_model, random_prompts, reference_tokens, run_plan, save

CPU = torch.device("cpu")
EAGER = frozenset({"bloom"})
PLACEMENTS: dict[str, dict[str, object]] = {
    "all gpu": {},
    "gpu and cpu": {"weights": "gc", "cache": (2, 2, 0, 0, 0), "activations": (2, 2, 0)},
    "all disk": {"weights": "d", "cache": (0, 0, 0, 4, 0), "activations": (0, 0, 4)},
    "three tiers": {"weights": "gcdd", "cache": (1, 1, 0, 2, 0), "activations": (1, 1, 2)},
    "three tiers, cpu attention": {"weights": "cdg", "cache": (1, 0, 1, 1, 1), "activations": (0, 3, 1)},
    "no gpu, all cpu": {"compute_tier": "cpu", "weights": "c", "cache": (0, 4, 0, 0, 0), "activations": (0, 4, 0)},
    "no gpu, cpu and disk": {"compute_tier": "cpu", "weights": "cd", "cache": (0, 1, 0, 3, 0), "activations": (0, 2, 2)},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, Path]]:
    """One saved checkpoint a family, with its transformers model."""
    torch.set_num_threads(1)
    return {}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_transformers(family: str, placement: str, tmp_path: Path) -> None:
    """Ragged prompts, two gpu batches a block, two blocks, the last one short: token by token the same."""
    torch.set_num_threads(1)
    if family in EAGER and "attention" in placement:
        pytest.skip("the family's attention is its own: the planner gives it no cpu rows")
    model = random_model(family)
    spec = save(model, tmp_path / "model")
    plan = make_plan(spec, **PLACEMENTS[placement])  # type: ignore[arg-type]
    requests = random_prompts([16, 5, 9, 12, 12, 3, 1, 8, 10, 11, 2], 6)
    tokens = run_plan(plan, tmp_path / "model", requests, EngineOptions(device=CPU, offload_dir=tmp_path))
    assert tokens == reference_tokens(model, requests)
