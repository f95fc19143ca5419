"""The engine gives the same tokens as transformers' own generate, whatever lives where."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import DynamicCache

from executor.engine import EngineOptions
from hwprofiles.packing import quantised_bytes
from hwprofiles.probes.quantize import dequantise, quantise
from planner import schedule
from planner.schedule import Task, TaskKind
from tests.executor.tiny import (
    FAMILIES,
    make_plan,
    random_model,
    random_prompts,
    reference_tokens,
    run_plan,
    save,
)

CPU = torch.device("cpu")
EAGER = frozenset({"bloom"})
PLACEMENTS: dict[str, dict[str, object]] = {
    "all gpu": {},
    "gpu and cpu": {"weights": "gc", "cache": (2, 2, 0, 0, 0), "activations": (2, 2, 0)},
    "all disk": {"weights": "d", "cache": (0, 0, 0, 4, 0), "activations": (0, 0, 4)},
    "three tiers": {"weights": "gcdd", "cache": (1, 1, 0, 2, 0), "activations": (1, 1, 2)},
    "three tiers, cpu attention": {"weights": "cdg", "cache": (1, 0, 1, 1, 1), "activations": (0, 3, 1)},
    "no gpu, all cpu": {
        "compute_tier": "cpu",
        "weights": "c",
        "cache": (0, 4, 0, 0, 0),
        "activations": (0, 4, 0),
    },
    "no gpu, cpu and disk": {
        "compute_tier": "cpu",
        "weights": "cd",
        "cache": (0, 1, 0, 3, 0),
        "activations": (0, 2, 2),
    },
}


LENGTHS = [16, 5, 9, 12, 12, 3, 1, 8, 10, 11, 2]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny matrices gain nothing from more."""
    torch.set_num_threads(1)


MIXED = ("three tiers", "three tiers, cpu attention", "no gpu, cpu and disk")
"""All tiers and both places to attend: every family, whose tensors are dealt over the tiers; the rest for some."""
CASES = [
    (family, placement)
    for family in FAMILIES
    for placement in PLACEMENTS
    if (placement in MIXED or family in ("opt", "gemma2", "mixtral"))
    and not (
        family in EAGER and "attention" in placement
    )  # its attention is its own: the planner gives no cpu rows
]


@pytest.mark.parametrize(("family", "placement"), CASES)
def test_tokens_equal_transformers(family: str, placement: str, tmp_path: Path) -> None:
    """Ragged prompts, two gpu batches a block, two blocks, the last one short: token by token the same."""
    model = random_model(family)
    spec = save(model, tmp_path / "model")
    plan = make_plan(spec, **PLACEMENTS[placement])  # type: ignore[arg-type]
    requests = random_prompts(LENGTHS, 6)
    tokens = run_plan(plan, tmp_path / "model", requests, EngineOptions(device=CPU, offload_dir=tmp_path))
    assert tokens == reference_tokens(model, requests)


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "one by one"])
@pytest.mark.parametrize("family", ["opt", "mistral", "gemma2", "bloom"])
def test_logits_equal_transformers(family: str, overlap: bool, tmp_path: Path) -> None:
    """Three tiers, left-padded prompts: every token's logits within float32 rounding of transformers'."""
    model = random_model(family)
    spec = save(model, tmp_path / "model")
    plan = make_plan(spec, weights="gcdd", cache=(1, 1, 0, 2, 0), activations=(1, 1, 2), num_gpu_batches=1)
    requests = random_prompts([16, 5, 9, 12], 6)
    seen: dict[int, torch.Tensor] = {}

    def observe(task: Task, logits: torch.Tensor) -> None:
        seen[task.i] = logits.clone()

    options = EngineOptions(device=CPU, offload_dir=tmp_path, overlap=overlap)
    tokens = run_plan(plan, tmp_path / "model", requests, options, observe)
    ordered = sorted(requests, key=lambda request: -len(request.prompt_ids))
    for row, request in enumerate(ordered):
        ids = torch.tensor([request.prompt_ids + tokens[request.custom_id]])
        with torch.inference_mode():
            expected = model(ids).logits[0, len(request.prompt_ids) - 1 : -1]
        ours = torch.stack([seen[i][row] for i in range(6)])
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{"max_tokens": [1, 6, 2, 8]}, {"lengths": [7]}, {"num_gpu_batches": 1}])
def test_uneven_jobs(changes: dict[str, object], tmp_path: Path) -> None:
    """Different max_tokens, a single prompt, one gpu batch a block: the same tokens as transformers."""
    model = random_model("llama")
    spec = save(model, tmp_path / "model")
    num_gpu_batches = int(str(changes.get("num_gpu_batches", 2)))
    plan = make_plan(
        spec, weights="gcd", cache=(1, 1, 0, 2, 0), activations=(1, 1, 2), num_gpu_batches=num_gpu_batches
    )
    lengths = cast("list[int]", changes.get("lengths", [16, 5, 9, 12]))
    requests = random_prompts(lengths, cast("list[int] | int", changes.get("max_tokens", 5)))
    tokens = run_plan(plan, tmp_path / "model", requests, EngineOptions(device=CPU, offload_dir=tmp_path))
    assert tokens == reference_tokens(model, requests)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", ["opt", "qwen3", "gemma2"])
@pytest.mark.parametrize("placement", ["three tiers, cpu attention", "three tiers", "no gpu, cpu and disk"])
def test_random_delays_change_nothing(family: str, placement: str, seed: int, tmp_path: Path) -> None:
    """Every task is held back at random: a missing dependency would show as other tokens."""
    model = random_model(family)
    spec = save(model, tmp_path / "model")
    plan = make_plan(spec, **PLACEMENTS[placement])  # type: ignore[arg-type]
    requests = random_prompts(LENGTHS[:8], 5)
    draw = random.Random(seed)
    options = EngineOptions(
        device=CPU, offload_dir=tmp_path, delay=lambda _: draw.choice((0.0, 0.0, 0.0, 0.001, 0.004))
    )
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)


def forget_edges(kind: TaskKind, needs: TaskKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine play a schedule that lacks the dependencies of `kind` on `needs`."""
    kinds: dict[int, TaskKind] = {}

    def forgetful(*arguments: object) -> Iterator[Task]:
        for task in schedule.tasks(*arguments):  # type: ignore[arg-type]
            kinds[task.id] = task.kind
            kept = tuple(dep for dep in task.deps if not (task.kind is kind and kinds[dep] is needs))
            yield task._replace(deps=kept)

    monkeypatch.setattr("executor.block_run.tasks", forgetful)


@pytest.mark.parametrize(
    ("kind", "needs"),
    [
        (TaskKind.COMPUTE, TaskKind.LOAD_WEIGHT),
        (TaskKind.COMPUTE, TaskKind.LOAD_CACHE),
        (TaskKind.COMPUTE, TaskKind.LOAD_ACTIVATION),
        (TaskKind.LOAD_CACHE, TaskKind.STORE_CACHE),
    ],
)
def test_delays_show_a_missing_dependency(
    kind: TaskKind, needs: TaskKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: without the edge from `kind` to a late `needs` the tokens are other ones."""
    model = random_model("opt")
    spec = save(model, tmp_path / "model")
    # one link lane keeps its order: activations that are loaded later would hide the edges to weights and cache
    activations = (4, 0, 0) if needs in (TaskKind.LOAD_WEIGHT, TaskKind.LOAD_CACHE) else (0, 4, 0)
    plan = make_plan(spec, weights="c", cache=(0, 4, 0, 0, 0), activations=activations)
    requests = random_prompts(LENGTHS[:8], 5)
    forget_edges(kind, needs, monkeypatch)
    options = EngineOptions(device=CPU, offload_dir=tmp_path, delay=lambda task: 0.02 * (task.kind is needs))
    assert run_plan(plan, tmp_path / "model", requests, options) != reference_tokens(model, requests)


@pytest.mark.parametrize("family", ["opt", "llama", "mixtral"])
def test_four_bit_weights_equal_a_dequantised_model(family: str, tmp_path: Path) -> None:
    """With its own matrices quantised and dequantised once, transformers gives the same tokens."""
    model = random_model(family)
    spec = save(model, tmp_path / "model")
    plan = make_plan(spec, weights="gcd", cache=(1, 1, 0, 2, 0), activations=(2, 2, 0), weight_bits=4)
    requests = random_prompts(LENGTHS, 6)
    tokens = run_plan(plan, tmp_path / "model", requests, EngineOptions(device=CPU, offload_dir=tmp_path))
    quantisable = {
        f"{spec.layer_prefix}.{j}.{tensor.name}"
        for j, layer in enumerate(spec.layers)
        for tensor in layer.tensors
        if tensor.quantizable
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in quantisable:
                packed = torch.empty(quantised_bytes(parameter.numel()), dtype=torch.uint8)
                quantise(parameter.detach().flatten(), packed)
                values = torch.empty(parameter.numel())
                dequantise(packed, parameter.numel(), values)
                parameter.copy_(values.view(parameter.shape))
    assert tokens == reference_tokens(model, requests)


class QuantisedCache(DynamicCache):
    """transformers' own cache, but what it keeps has been through 4 bits; a prompt attends to itself unquantised."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows, heads, tokens, head_dim] in and out."""
        is_prompt = self.get_seq_length(layer_idx) == 0
        kept = super().update(_through_4_bits(key_states), _through_4_bits(value_states), layer_idx)
        return (key_states, value_states) if is_prompt else kept


def _through_4_bits(states: torch.Tensor) -> torch.Tensor:
    vectors = states.transpose(1, 2).flatten(2)
    packed = torch.empty(*vectors.shape[:2], quantised_bytes(vectors.shape[2]), dtype=torch.uint8)
    quantise(vectors.contiguous(), packed)
    values = torch.empty_like(vectors)
    dequantise(packed, vectors.shape[2], values)
    return values.view(states.transpose(1, 2).shape).transpose(1, 2)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("placement", ["all gpu", "three tiers", "three tiers, cpu attention", "all disk"])
def test_four_bit_cache_equals_a_quantised_transformers_cache(
    placement: str, family: str, tmp_path: Path
) -> None:
    """Wherever the packed cache is: the tokens of transformers with a cache that goes through the same 4 bits."""
    model = random_model(family)
    spec = save(model, tmp_path / "model")
    requests = random_prompts(LENGTHS, 6)
    plan = make_plan(spec, kv_bits=4, **PLACEMENTS[placement])  # type: ignore[arg-type]
    tokens = run_plan(plan, tmp_path / "model", requests, EngineOptions(device=CPU, offload_dir=tmp_path))
    assert tokens == reference_tokens(model, requests, QuantisedCache)


def test_an_error_in_a_lane_ends_the_run(tmp_path: Path) -> None:
    """An error on another thread is raised by generate, and the offload files are gone."""
    model = random_model("opt")
    spec = save(model, tmp_path / "model")
    plan = make_plan(spec, weights="d", cache=(0, 0, 0, 4, 0), activations=(0, 0, 4))

    def fail(task: Task) -> float:
        if task.kind is TaskKind.LOAD_CACHE:
            raise OSError("the disk is gone")
        return 0.0

    options = EngineOptions(device=CPU, offload_dir=tmp_path, delay=fail)
    with pytest.raises(OSError, match="the disk is gone"):
        run_plan(plan, tmp_path / "model", random_prompts(LENGTHS, 6), options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
