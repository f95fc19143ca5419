"""Decode replayed as CUDA graphs: the same tokens, each layer captured once a gpu batch, its arguments copied in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from executor.engine import EngineOptions
from executor.graphs import LayerGraphs, refresh
from planner.sizes import Sizes
from tests.executor.test_parity import LENGTHS
from tests.executor.tiny import make_plan, random_model, random_prompts, reference_tokens, run_plan, save

NUM_ENDS = 2
"""Graphs of a pass beside those of layers: what comes before them and after."""


def test_new_arguments_are_copied_into_the_kept_ones() -> None:
    """Tensors keep their addresses and get the new values, also where several layers are given the same one."""
    shared, alone, cache = torch.zeros(3), torch.zeros(2), object()
    kept = [{"rotary": (shared, alone), "cache": cache}, {"rotary": (shared, alone), "cache": cache}]
    ones, twos = torch.ones(3), torch.full((2,), 2.0)
    new = [{"rotary": (ones, twos), "cache": cache}, {"rotary": (ones, twos), "cache": cache}]
    assert refresh(kept, new)
    assert torch.equal(shared, ones)
    assert torch.equal(alone, twos)


@pytest.mark.parametrize(
    "new",
    [
        {"rotary": torch.zeros(4), "past": 3},
        {"rotary": torch.zeros(3, dtype=torch.float64), "past": 3},
        {"rotary": torch.zeros(3), "past": 4},
        {"rotary": torch.zeros(3), "past": None},
        {"rotary": (torch.zeros(3),), "past": 3},
        {"rotary": torch.zeros(3), "other": 3},
    ],
)
def test_arguments_that_differ_are_not_taken(new: dict[str, object]) -> None:
    """Another shape, type, value or key: a graph would go on with what it was captured with."""
    assert not refresh([{"rotary": torch.zeros(3), "past": 3}], [new])


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each capture worked."""
    found: list[bool] = []
    capture = LayerGraphs.try_capture

    def counting(self: LayerGraphs, work: Callable[[], None]) -> torch.cuda.CUDAGraph | str:
        graph = capture(self, work)
        found.append(not isinstance(graph, str))
        return graph

    monkeypatch.setattr(LayerGraphs, "try_capture", counting)
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["opt", "llama", "qwen3", "phi3", "gpt_neox", "gpt2"])
def test_tokens_equal_transformers(family: str, captured: list[bool], tmp_path: Path) -> None:
    """Ragged prompts in blocks of several sizes; all of every gpu batch's pass is captured once a block at most."""
    model = random_model(family, **({"sliding_window": None} if family == "phi3" else {}))
    spec = save(model, tmp_path / "model")
    plan = make_plan(spec, emulated=False)
    requests = random_prompts(LENGTHS, 8)
    options = EngineOptions(device=torch.device("cuda", 0), offload_dir=tmp_path)
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)
    num_batches = -(-len(requests) // plan.policy.gpu_batch_size)
    assert captured
    assert all(captured)
    assert len(captured) <= (NUM_ENDS + (1 if plan.sizes().joins_layers else 3)) * num_batches


@pytest.mark.gpu
@pytest.mark.parametrize("gen_lens", [8, ([8, 3, 8, 1, 6] * 3)[: len(LENGTHS)]])
def test_layers_of_one_graph_or_of_their_own(
    gen_lens: int | list[int], captured: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing moves between layers they are captured together, if a family's can be; the same tokens."""
    model = random_model("llama")
    spec = save(model, tmp_path / "model")
    requests = random_prompts(LENGTHS, gen_lens)
    options = EngineOptions(device=torch.device("cuda", 0), offload_dir=tmp_path)
    expected, counts = reference_tokens(model, requests), []
    for joins in (True, False):
        plan = make_plan(spec, emulated=False)
        assert plan.sizes().joins_layers
        if not joins:
            monkeypatch.setattr(Sizes, "joins_layers", property(lambda _: False))
        captured.clear()
        assert run_plan(plan, tmp_path / "model", requests, options) == expected
        assert all(captured)
        counts.append(len(captured))
    assert counts[1] * (NUM_ENDS + 1) == counts[0] * (NUM_ENDS + 3)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [(4, 16), (16, 4), (4, 4)])
def test_four_bits_are_replayed_too(bits: tuple[int, int], captured: list[bool], tmp_path: Path) -> None:
    """The same tokens with graphs and without, weights and cache packed."""
    model = random_model("llama")
    spec = save(model, tmp_path / "model")
    requests = random_prompts(LENGTHS, 8)
    options = EngineOptions(device=torch.device("cuda", 0), offload_dir=tmp_path)
    tokens = []
    for graphs in (True, False):
        plan = make_plan(spec, emulated=False, graphs=graphs, weight_bits=bits[0], kv_bits=bits[1])
        tokens.append(run_plan(plan, tmp_path / "model", requests, options))
        assert bool(captured) is True
    assert tokens[0] == tokens[1]
    assert all(captured)


@pytest.mark.gpu
def test_what_prefill_held_is_given_back_once_a_block() -> None:
    """Before a block's first graph, for which the driver takes memory that torch must not keep."""
    device = torch.device("cuda", 0)
    graphs = LayerGraphs(device, wanted=True)
    value = torch.zeros(1, device=device)
    for _ in range(2):
        graphs.start_block()
        reserved = []
        for _ in range(2):
            torch.empty(2**28, dtype=torch.uint8, device=device)
            before = torch.cuda.memory_reserved(device)
            with torch.cuda.stream(torch.cuda.Stream(device)):
                assert graphs.capture(lambda: value.add_(1))
            reserved.append(before - torch.cuda.memory_reserved(device))
        assert reserved[0] >= 2**28
        assert reserved[1] <= 0


@pytest.mark.gpu
def test_what_cannot_be_captured_is_called(
    captured: list[bool], caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that waits for the device ends the graphs of the run with one line, and nothing else changes."""
    from executor.template import LayerTemplates  # noqa: PLC0415 - patched here only

    model = random_model("opt")
    spec = save(model, tmp_path / "model")
    run_layer = LayerTemplates.run_layer

    def waiting(
        self: LayerTemplates, j: int, hidden: torch.Tensor, arguments: dict[str, object]
    ) -> torch.Tensor:
        result = run_layer(self, j, hidden, arguments)
        float(result.sum())
        return result

    monkeypatch.setattr(LayerTemplates, "run_layer", waiting)
    requests = random_prompts(LENGTHS[:8], 8)
    options = EngineOptions(device=torch.device("cuda", 0), offload_dir=tmp_path)
    plan = make_plan(spec, emulated=False)
    assert run_plan(plan, tmp_path / "model", requests, options) == reference_tokens(model, requests)
    assert captured == [True, True, False]
    assert caplog.text.count("not replayed as CUDA graphs") == 1
    assert torch.rand(1, device="cuda").isfinite().all(), "torch's own generator draws as before"
