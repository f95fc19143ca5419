"""On a CUDA device: the same tokens over three real tiers, under random delays, within the gpu tier's limit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from executor.arena import Arena
from executor.engine import EngineOptions
from planner.schedule import TaskKind
from tests.executor.test_parity import LENGTHS, PLACEMENTS, forget_edges
from tests.executor.tiny import make_plan, random_model, random_prompts, reference_tokens, run_plan, save

pytestmark = pytest.mark.gpu
TIERS = ["all gpu", "gpu and cpu", "all disk", "three tiers", "three tiers, cpu attention"]


@pytest.mark.parametrize("placement", TIERS)
@pytest.mark.parametrize("family", ["opt", "llama", "mistral", "gemma2", "mixtral", "gpt_neox", "bloom"])
def test_tokens_equal_transformers(family: str, placement: str, tmp_path: Path) -> None:
    """Ragged prompts over real tiers: token by token the same as transformers on the CPU, in float32."""
    if family == "bloom" and "attention" in placement:
        pytest.skip("the family's attention is its own: the planner gives it no cpu rows")
    model = random_model(family)
    spec = save(model, tmp_path / "model")
    plan = make_plan(spec, emulated=False, **PLACEMENTS[placement])  # type: ignore[arg-type]
    requests = random_prompts(LENGTHS, 6)
    options = EngineOptions(device=torch.device("cuda", 0), offload_dir=tmp_path)
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("placement", TIERS[1:])
def test_random_delays_change_nothing(placement: str, seed: int, tmp_path: Path) -> None:
    """Streams and threads are held back at random: a missing event would show as other tokens."""
    model = random_model("qwen3")
    spec = save(model, tmp_path / "model")
    plan = make_plan(spec, emulated=False, **PLACEMENTS[placement])  # type: ignore[arg-type]
    requests = random_prompts(LENGTHS[:8], 5)
    draw = random.Random(seed)
    options = EngineOptions(
        device=torch.device("cuda", 0),
        offload_dir=tmp_path,
        delay=lambda _: draw.choice((0.0, 0.0, 0.0, 0.001, 0.004)),
    )
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)


@pytest.mark.parametrize(
    ("kind", "needs"),
    [
        (TaskKind.COMPUTE, TaskKind.LOAD_WEIGHT),
        (TaskKind.LOAD_WEIGHT, TaskKind.COMPUTE),
        (TaskKind.STORE_ACTIVATION, TaskKind.COMPUTE),
        (TaskKind.STORE_CACHE, TaskKind.COMPUTE),
    ],
)
def test_delays_show_a_missing_event(
    kind: TaskKind, needs: TaskKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: without the event from a late `needs` the tokens are other ones."""
    model = random_model("opt")
    spec = save(model, tmp_path / "model")
    activations = (0, 4, 0) if kind is TaskKind.STORE_ACTIVATION else (4, 0, 0)
    plan = make_plan(spec, emulated=False, weights="c", cache=(0, 4, 0, 0, 0), activations=activations)
    requests = random_prompts(LENGTHS[:8], 5)
    forget_edges(kind, needs, monkeypatch)
    options = EngineOptions(
        device=torch.device("cuda", 0), offload_dir=tmp_path, delay=lambda task: 0.02 * (task.kind is needs)
    )
    assert run_plan(plan, tmp_path / "model", requests, options) != reference_tokens(model, requests)


@pytest.mark.parametrize("placement", TIERS)
def test_four_bits_on_cuda_equal_four_bits_on_the_cpu(placement: str, tmp_path: Path) -> None:
    """Quantised weights and cache: the same tokens as the emulated gpu tier gives."""
    model = random_model("llama")
    spec = save(model, tmp_path / "model")
    requests = random_prompts(LENGTHS, 6)
    chosen = PLACEMENTS[placement]
    real = make_plan(spec, emulated=False, weight_bits=4, kv_bits=4, **chosen)  # type: ignore[arg-type]
    emulated = make_plan(spec, weight_bits=4, kv_bits=4, **chosen)  # type: ignore[arg-type]
    on_cuda = EngineOptions(device=torch.device("cuda", 0), offload_dir=tmp_path)
    on_cpu = EngineOptions(device=torch.device("cpu"), offload_dir=tmp_path)
    assert run_plan(real, tmp_path / "model", requests, on_cuda) == run_plan(
        emulated, tmp_path / "model", requests, on_cpu
    )


def test_a_registered_arena_is_one_memory_for_host_and_device() -> None:
    """What a kernel writes through the device's view the host reads, and the other way round."""
    arena = Arena(1 << 20, torch.device("cpu"), register=True)
    try:
        seen = arena.on_device()
        assert seen.device.type == "cuda"
        values = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8)
        torch.mul(values.cuda(), 1, out=seen)
        torch.cuda.synchronize()
        assert torch.equal(arena.tensor, values)
        arena.tensor.fill_(7)
        assert int(torch.mul(seen, 1).sum()) == 7 << 20
    finally:
        torch.cuda.synchronize()
        arena.close()
